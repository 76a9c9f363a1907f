"""Normal values from a device's own generator: the distribution, at the least cost."""

from __future__ import annotations

import functools
import math

import torch

LEVELS = 1 << 16
_CHUNK = 1 << 15  # elements drawn at a time, few enough for the second-level cache


def fast_normal(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Standard normal values of `shape` from `generator`. On the host, where computing them costs more than storing
    them, each is one of 65536 equally likely levels, |x| < 4.33, of unit variance and kurtosis within 0.001 of the
    normal one; elsewhere they are torch's own.
    """
    if device.type != "cpu":
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    out = torch.empty(math.prod(shape), dtype=dtype, device=device)
    levels = _levels()
    for begin in range(0, out.numel(), _CHUNK):
        piece = out[begin : begin + _CHUNK]
        words = torch.empty((len(piece) + 3) // 4, dtype=torch.int64, device=device)
        words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
        place = words.view(torch.int16)[: len(piece)].to(torch.int32).add_(LEVELS // 2)
        piece.copy_(levels.index_select(0, place))
    return out.view(shape)


@functools.cache
def _levels() -> torch.Tensor:
    """Quantiles in the middle of equal shares, scaled to unit variance: float32 [65536] on the host."""
    with torch.inference_mode(False):
        share = (torch.arange(LEVELS, dtype=torch.float64, device="cpu") + 0.5) / LEVELS
        quantile: torch.Tensor = torch.special.ndtri(share)
        return quantile.div(quantile.square().mean().sqrt()).to(torch.float32)
