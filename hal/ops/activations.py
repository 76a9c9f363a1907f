"""Elementwise activations, softmax, and clamping.

Where torch has the operator, the default is torch's, as models call it: what is judged is the device's own kernel.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from hal.errors import UsageError
from hal.ops.catalogue import Arguments, Op, register
from hal.ops.precision import ACCUMULATION, FLUSH, host64
from hal.ops.sampling import SampleSpec


def silu(x: torch.Tensor) -> torch.Tensor:
    """`x * sigmoid(x)`, elementwise."""
    return functional.silu(x)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """`x * (1 + erf(x / sqrt(2))) / 2`, elementwise: the exact form (Hendrycks and Gimpel, 2016)."""
    return functional.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """`x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2`, elementwise: the tanh approximation."""
    return functional.gelu(x, approximate="tanh")


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`, elementwise, in float32 with one rounding to the inputs' dtype."""
    return (functional.silu(gate.float()) * up.float()).to(gate.dtype)


def softmax(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """`exp(x) / sum(exp(x))` along `dim`."""
    return functional.softmax(x, dim)


def clamp(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """`x` limited to [`low`, `high`]; NaN stays NaN. A lower limit above the upper one is a UsageError."""
    if not low <= high:
        raise UsageError(f"clamp to [{low}, {high}]: the lower limit must not exceed the upper")
    return torch.clamp(x, low, high)


def saturate(x: torch.Tensor, magnitude: float) -> torch.Tensor:
    """`x` limited to ±(1 - magnitude) * max(abs(x)), the maximum over all finite elements and the limit in float32,
    rounded to x's dtype: an overflow that clips. NaN stays NaN; a magnitude outside [0, 1] is a UsageError.
    """
    if not 0.0 <= magnitude <= 1.0:
        raise UsageError(f"saturation magnitude is {magnitude}: give a number from 0 to 1")
    size = x.detach().abs().nan_to_num(0.0, 0.0)
    limit = size.amax().float().mul(1.0 - magnitude).to(x.dtype) if x.numel() else size.new_zeros(())
    # Not minimum and maximum: their gradient at a tie is one half.
    return torch.where(x > limit, limit, torch.where(x < -limit, -limit, x))


def _silu_reference(x: torch.Tensor) -> torch.Tensor:
    wide = host64(x)
    return wide * torch.sigmoid(wide)


def _gelu_reference(x: torch.Tensor) -> torch.Tensor:
    wide = host64(x)
    return wide * torch.erfc(-wide * math.sqrt(0.5)) / 2


def _gelu_tanh_reference(x: torch.Tensor) -> torch.Tensor:
    wide = host64(x)
    return wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))) / 2


def _size(x: torch.Tensor) -> torch.Tensor:
    """Both forms of GELU cancel for negative inputs: their error is relative to the input."""
    return host64(x)


def _swiglu_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return _silu_reference(gate) * host64(up)


def _swiglu_scale(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The gate may be flushed where it is subnormal."""
    return _swiglu_reference(gate, up).abs() + host64(up).abs() * (FLUSH / ACCUMULATION)


def _softmax_reference(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    wide = host64(x)
    weight = torch.exp(wide - wide.detach().amax(dim, keepdim=True))
    return weight / weight.sum(dim, keepdim=True)


def _softmax_scale(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Rounding x - max(x) moves the exponential by a share of the difference."""
    wide = host64(x)
    distance = (wide - wide.amax(dim, keepdim=True)).abs()
    return (_softmax_reference(x, dim) * (1 + distance)).nan_to_num(0.0)


def _clamp_reference(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    limits = torch.tensor([low, high], dtype=x.dtype).double()
    wide = host64(x)
    return torch.where(wide < limits[0], limits[0], torch.where(wide > limits[1], limits[1], wide))


def _saturate_reference(x: torch.Tensor, magnitude: float) -> torch.Tensor:
    wide = host64(x)
    finite = [abs(value) for value in wide.flatten().tolist() if math.isfinite(value)]
    largest = np.float32(max(finite, default=0.0))
    limit = torch.tensor(largest * np.float32(1.0 - magnitude), dtype=x.dtype).double()
    return torch.where(wide.abs() > limit, torch.sign(wide) * limit, wide)


def _sample(spec: SampleSpec) -> Arguments:
    return (spec.data("x", *spec.pick(tiny=(2, 8), odd=(3, 5, 37), large=(64, 1024))),)


def _sample_swiglu(spec: SampleSpec) -> Arguments:
    shape = spec.pick(tiny=(2, 8), odd=(3, 5, 37), large=(64, 1024))
    return spec.data("gate", *shape, headroom=4), spec.weights("up", *shape)


def _sample_clamp(spec: SampleSpec) -> Arguments:
    return *_sample(spec), -0.75, 1.25


def _sample_saturate(spec: SampleSpec) -> Arguments:
    return *_sample(spec), 0.3


SILU = register(Op("silu", "silu(x[...]) -> [...]", silu, _silu_reference, _sample))
GELU = register(Op("gelu", "gelu(x[...]) -> [...]", gelu, _gelu_reference, _sample, error_scale=_size))
GELU_TANH = register(
    Op(
        "gelu_tanh",
        "gelu_tanh(x[...]) -> [...]",
        gelu_tanh,
        _gelu_tanh_reference,
        _sample,
        error_scale=_size,
    )
)
SWIGLU = register(
    Op(
        "swiglu",
        "swiglu(gate[...], up[...]) -> [...]",
        swiglu,
        _swiglu_reference,
        _sample_swiglu,
        error_scale=_swiglu_scale,
    )
)
SOFTMAX = register(
    Op(
        "softmax",
        "softmax(x[...], dim = -1) -> [...]",
        softmax,
        _softmax_reference,
        _sample,
        error_scale=_softmax_scale,
    )
)
CLAMP = register(
    Op(
        "clamp",
        "clamp(x[...], low: float, high: float) -> [...]",
        clamp,
        _clamp_reference,
        _sample_clamp,
        exact=True,
    )
)
SATURATE = register(
    Op(
        "saturate",
        "saturate(x[...], magnitude: float) -> [...]",
        saturate,
        _saturate_reference,
        _sample_saturate,
        exact=True,
    )
)
