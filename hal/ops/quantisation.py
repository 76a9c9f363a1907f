"""Fake quantisation to MXFP4, NVFP4 and INT8 with straight-through gradients.

Formats: OCP Microscaling v1.0 (E2M1 elements, blocks of 32, E8M0 scale), NVIDIA's NVFP4 (E2M1
elements, blocks of 16, E4M3 scale, one float32 scale for the tensor), symmetric INT8. Blocks run along
the last dimension; a short last block has a scale of its own. Rounding is to nearest, ties to even, of
float32 numbers. Non-finite elements set no scale and pass through unchanged, so that an overflow stays
visible. The gradient is that of the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from torch.nn import functional

from hal.errors import UsageError
from hal.ops import quantisation_reference as reference
from hal.ops.catalogue import Arguments, Op, register
from hal.ops.sampling import SampleSpec

MXFP4_BLOCK = 32
NVFP4_BLOCK = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
INT8_MAX = 127.0

Scope = Literal["token", "tensor"]

_EXPONENT_FIELD = 23
_BIAS = 127
_E8M0_MIN = -127


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, quantise: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        values = x.float()
        finite = values.isfinite()
        quantised = quantise(torch.where(finite, values, 0.0)) if x.numel() else values
        return torch.where(finite, quantised, values).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def straight_through(x: torch.Tensor, quantise: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`quantise` applied to the finite elements of `x` in float32 (the others come to it as zero and back as they
    were), with the gradient of the identity.
    """
    if not x.dim():
        raise UsageError("quantisation of a single number: give a tensor with at least one dimension")
    return cast(torch.Tensor, _StraightThrough.apply(x, quantise))  # type: ignore[no-untyped-call]  # torch's


def fake_quantize_mxfp4(x: torch.Tensor) -> torch.Tensor:
    """`x` [..., D] rounded to MXFP4 and back: per block of 32 the scale is 2**(floor(log2(max)) - 2), not below
    2**-127, elements are E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6) and saturate at 6. Every step is exact, so the result is
    the same on every device.
    """
    return straight_through(x, _mxfp4)


def fake_quantize_nvfp4(x: torch.Tensor, tensor_scale: float | None = None) -> torch.Tensor:
    """`x` [..., D] rounded to NVFP4 and back: per block of 16 the scale is max / 6 / `tensor_scale`, rounded to E4M3,
    and elements are E2M1. `tensor_scale` defaults to max(abs(x)) / 2688, which maps the largest block to the largest
    scale. A block whose scale rounds to zero becomes zero; a scale that is not positive and finite is a UsageError.
    """
    if tensor_scale is not None and not 0.0 < tensor_scale < math.inf:
        raise UsageError(f"NVFP4 tensor scale is {tensor_scale}: give a positive finite number")
    return straight_through(x, lambda values: _nvfp4(values, tensor_scale))


def fake_quantize_int8(x: torch.Tensor, scope: Scope = "token") -> torch.Tensor:
    """`x` [..., D] rounded to symmetric INT8 and back: scale = max / 127 per vector along the last dimension, or with
    scope "tensor" for the whole tensor, and integers from -127 to 127. An unknown scope is a UsageError.
    """
    if scope not in get_args(Scope):
        raise UsageError(f"INT8 scope is '{scope}': choose 'token' or 'tensor'")
    return straight_through(x, lambda values: _int8(values, scope))


def round_to_format(x: torch.Tensor, significand: int, smallest: int, largest: float) -> torch.Tensor:
    """float32 `x`, finite and not negative, rounded to nearest-even to the floating-point format with that many stored
    `significand` bits, normal numbers from 2**smallest and `largest` as its saturation value; E2M1 is (1, 0, 6), E4M3
    (3, -6, 448).
    """
    limited = x.clamp(max=largest)
    exponent = ((limited.view(torch.int32) >> _EXPONENT_FIELD) - _BIAS).clamp_(min=smallest)
    steps = torch.round(limited * _power_of_two(significand - exponent))
    return steps * _power_of_two(exponent - significand)


def _mxfp4(x: torch.Tensor) -> torch.Tensor:
    blocks = _blocks(x, MXFP4_BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True)
    exponent = ((largest.view(torch.int32) >> _EXPONENT_FIELD) - _BIAS - 2).clamp_(min=_E8M0_MIN)
    codes = round_to_format(blocks.abs() * _power_of_two(-exponent), 1, 0, E2M1_MAX)
    # A quarter of the code times four times the scale: neither factor nor product leaves float32's range.
    return _unblock((codes * 0.25) * _power_of_two(exponent + 2), x)


def _nvfp4(x: torch.Tensor, tensor_scale: float | None) -> torch.Tensor:
    blocks = _blocks(x, NVFP4_BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True)
    given = largest.amax() / (E2M1_MAX * E4M3_MAX)
    if tensor_scale is not None:
        given = torch.full_like(given, tensor_scale)
    scale = round_to_format(_ratio(largest, given * E2M1_MAX), 3, -6, E4M3_MAX) * given
    codes = round_to_format(_ratio(blocks.abs(), scale), 1, 0, E2M1_MAX)
    return _unblock(codes * scale, x)


def _int8(x: torch.Tensor, scope: Scope) -> torch.Tensor:
    size = x.abs()
    scale = (size.amax() if scope == "tensor" else size.amax(-1, keepdim=True)) / INT8_MAX
    return _signed(torch.round(_ratio(size, scale)).clamp_(max=INT8_MAX) * scale, x)


def _ratio(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """X / scale, and zero where the scale is."""
    return torch.where(scale > 0, x / scale, 0.0)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2**exponent for int32 exponents of normal float32 numbers, from the bits: no library function rounds."""
    return ((exponent + _BIAS) << _EXPONENT_FIELD).view(torch.float32)


def _blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    padded = functional.pad(x, (0, -x.shape[-1] % size))
    return padded.view(*x.shape[:-1], -1, size)


def _unblock(blocks: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _signed(blocks.flatten(-2)[..., : x.shape[-1]], x)


def _signed(size: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 0, -size, size)


def _sample(spec: SampleSpec) -> Arguments:
    return (spec.data("x", *spec.pick(tiny=(2, 8), odd=(3, 5, 37), large=(16, 1040))),)


FAKE_QUANTIZE_MXFP4 = register(
    Op(
        "fake_quantize_mxfp4",
        "fake_quantize_mxfp4(x[..., D]) -> [..., D]",
        fake_quantize_mxfp4,
        reference.mxfp4,
        _sample,
        exact=True,
    )
)
FAKE_QUANTIZE_NVFP4 = register(
    Op(
        "fake_quantize_nvfp4",
        "fake_quantize_nvfp4(x[..., D], tensor_scale: float | None = None) -> [..., D]",
        fake_quantize_nvfp4,
        reference.nvfp4,
        _sample,
        exact=True,
    )
)
FAKE_QUANTIZE_INT8 = register(
    Op(
        "fake_quantize_int8",
        'fake_quantize_int8(x[..., D], scope: "token" | "tensor" = "token") -> [..., D]',
        fake_quantize_int8,
        reference.int8,
        _sample,
        exact=True,
    )
)
