"""Layer normalisation and its root-mean-square form."""

from __future__ import annotations

import torch
from torch.nn import functional

from hal.ops.catalogue import Arguments, Op, register
from hal.ops.precision import ACCUMULATION, FLUSH, host64
from hal.ops.sampling import SampleSpec

# A thousand squares of numbers below 2**56 still sum to a finite float32.
_SQUARE_LIMIT = 56


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dimension, x [..., D], weight [D] (Zhang and Sennrich,
    2019); float32 inside, one rounding to x's dtype.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension with the population variance, x
    [..., D], weight and bias [D] (Ba et al., 2016).
    """
    return functional.layer_norm(x, weight.shape, weight, bias, eps)


def _rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = host64(x)
    return wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps) * host64(weight)


def _rms_norm_scale(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The input may be flushed where it is subnormal, before it is divided by the root mean square."""
    wide = host64(x).abs() + FLUSH / ACCUMULATION
    return wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps) * host64(weight).abs()


def _layer_norm_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    wide = host64(x)
    deviation = wide - wide.mean(-1, keepdim=True)
    variance = (deviation * deviation).mean(-1, keepdim=True)
    return deviation / torch.sqrt(variance + eps) * host64(weight) + host64(bias)


def _layer_norm_scale(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Subtracting the mean and adding the bias may cancel."""
    wide = host64(x)
    variance = wide.var(-1, correction=0, keepdim=True)
    terms = wide.abs() + wide.abs().mean(-1, keepdim=True) + FLUSH / ACCUMULATION
    return terms / torch.sqrt(variance + eps) * host64(weight).abs() + host64(bias).abs()


def _sample_rms_norm(spec: SampleSpec) -> Arguments:
    rows, width = spec.pick(tiny=(2, 8), odd=(5, 37), large=(64, 1024))
    x = spec.data("x", 2, rows, width, limit=_SQUARE_LIMIT)
    return x, spec.weights("weight", width, scale=0.25, offset=1.0), 1e-6


def _sample_layer_norm(spec: SampleSpec) -> Arguments:
    x, weight, _ = _sample_rms_norm(spec)
    return x, weight, spec.weights("bias", weight.shape[0], scale=0.25), 1e-5


RMS_NORM = register(
    Op(
        "rms_norm",
        "rms_norm(x[..., D], weight[D], eps: float) -> [..., D]",
        rms_norm,
        _rms_norm_reference,
        _sample_rms_norm,
        error_scale=_rms_norm_scale,
    )
)
LAYER_NORM = register(
    Op(
        "layer_norm",
        "layer_norm(x[..., D], weight[D], bias[D], eps: float) -> [..., D]",
        layer_norm,
        _layer_norm_reference,
        _sample_layer_norm,
        error_scale=_layer_norm_scale,
    )
)
