"""How much a quantised tensor differs from the original."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from hal.errors import UsageError
from hal.ops.precision import host64


class Quality(NamedTuple):
    """`sqnr_db`: ratio of signal to quantisation noise power, in decibels (infinite where nothing changed);
    `dead_zone_ratio`: share of the non-zero elements that became zero; `relative_error`: norm of the difference over
    norm of the signal.
    """

    sqnr_db: float
    dead_zone_ratio: float
    relative_error: float


@torch.no_grad()
def quantisation_quality(x: torch.Tensor, quantised: torch.Tensor) -> Quality:
    """Compare `quantised` with the `x` it came from, in float64 on the host, over the elements where both are finite;
    different shapes, or an `x` that is zero throughout, are a UsageError.
    """
    if x.shape != quantised.shape:
        raise UsageError(
            f"quantised tensor of shape {tuple(quantised.shape)} against {tuple(x.shape)}: the shapes must be equal"
        )
    signal, result = host64(x), host64(quantised)
    finite = signal.isfinite() & result.isfinite()
    signal, result = signal[finite], result[finite]
    # The largest value as unit, so that squares neither overflow nor vanish.
    unit = float(signal.abs().amax()) if signal.numel() else 0.0
    if not unit:
        raise UsageError("the original tensor holds no finite value but zero: its quality is undefined")
    power = float((signal / unit).square().sum())
    noise = float(((result - signal) / unit).square().sum())
    alive = signal != 0
    return Quality(
        sqnr_db=10 * math.log10(power / noise) if noise else math.inf,
        dead_zone_ratio=float((result[alive] == 0).double().mean()),
        relative_error=math.sqrt(noise / power),
    )
