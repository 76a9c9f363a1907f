"""Fake quantisation by its definition: every code point written out, the nearest one looked up, on the host.

Scales follow the float32 steps that the formats prescribe; the choice of a code is made in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

E2M1_CODES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
# Exponent field 0 is subnormal; the last of the 128 patterns is NaN.
E4M3_CODES = np.array(
    [
        (significand / 8) * 2.0**-6 if exponent == 0 else (1 + significand / 8) * 2.0 ** (exponent - 7)
        for exponent in range(16)
        for significand in range(8)
    ][:-1]
)
INT8_CODES = np.arange(128.0)


def nearest(values: npt.ArrayLike, codes: Array) -> Array:
    """For each of `values`, not negative, the nearest of the ascending `codes`; between two equally near, the one at
    an even place, whose last significand bit is zero; beyond the last, the last.
    """
    middles = (codes[:-1] + codes[1:]) / 2
    below, above = np.searchsorted(middles, values, side="left"), np.searchsorted(middles, values, side="right")
    chosen: Array = codes[np.where(below % 2 == 0, below, above)]
    return chosen


def mxfp4(x: torch.Tensor) -> torch.Tensor:
    """See `hal.ops.quantisation.fake_quantize_mxfp4`."""

    def block(size: Array) -> Array:
        largest = size.max(initial=0.0)
        exponent = max(int(np.frexp(largest)[1]) - 3, -127) if largest else -127
        scale = 2.0**exponent
        return nearest(size / scale, E2M1_CODES) * scale

    return _by_definition(x, lambda size: _per_block(size, 32, block))


def nvfp4(x: torch.Tensor, tensor_scale: float | None = None) -> torch.Tensor:
    """See `hal.ops.quantisation.fake_quantize_nvfp4`."""

    def tensor(size: Array) -> Array:
        narrow = size.astype(np.float32)
        outer = narrow.max(initial=0.0) / np.float32(2688) if tensor_scale is None else np.float32(tensor_scale)

        def block(part: Array) -> Array:
            unit = np.float32(outer * np.float32(6))
            ratio = part.max(initial=np.float32(0)) / unit if unit > 0 else np.float32(0)
            scale = np.float32(nearest(np.float64(ratio), E4M3_CODES)) * outer
            if not scale > 0:
                return np.zeros_like(part)
            codes = nearest((part / scale).astype(np.float64), E2M1_CODES).astype(np.float32)
            return np.asarray(codes * scale)

        return _per_block(narrow, 16, block)

    return _by_definition(x, tensor)


def int8(x: torch.Tensor, scope: str = "token") -> torch.Tensor:
    """See `hal.ops.quantisation.fake_quantize_int8`."""

    def row(size: Array) -> Array:
        scale = size.max(initial=np.float32(0)) / np.float32(127)
        if not scale > 0:
            return np.zeros_like(size)
        codes = nearest((size / scale).astype(np.float64), INT8_CODES).astype(np.float32)
        return np.asarray(codes * scale)

    def tensor(size: Array) -> Array:
        narrow = size.astype(np.float32)
        return row(narrow) if scope == "tensor" else np.stack([row(part) for part in narrow])

    return _by_definition(x, tensor)


def _by_definition(x: torch.Tensor, quantise: Callable[[Array], Array]) -> torch.Tensor:
    """Apply `quantise` to the sizes of the finite elements, rows by last dimension, and put back the rest."""
    wide = x.to("cpu").to(torch.float64)
    values = wide.detach().numpy().reshape(-1, x.shape[-1] if x.shape[-1] else 1)
    finite = np.isfinite(values)
    with np.errstate(all="ignore"):
        rounded = quantise(np.where(finite, np.abs(values), 0.0))
    signed = np.where(finite, np.copysign(rounded, values), values)
    result = torch.from_numpy(signed).view(x.shape).to(x.dtype).to(torch.float64)
    return cast(torch.Tensor, _IdentityGradient.apply(wide, result))  # type: ignore[no-untyped-call]  # torch's


class _IdentityGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        return result.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def _per_block(rows: Array, size: int, quantise: Callable[[Array], Array]) -> Array:
    out = np.empty_like(rows)
    for row, target in zip(rows, out, strict=True):
        for begin in range(0, len(row), size):
            target[begin : begin + size] = quantise(row[begin : begin + size])
    return out
