"""Compare values with what they should have been, element by element, and describe how they differ."""

from __future__ import annotations

import numpy as np

from srdd.measurements import NAN, Transfer
from srdd.probes.samples import TINY, Array


def describe_transfer(expected: Array, actual: Array, allowance: Array) -> Transfer:
    """The deviation of `actual` from `expected`, both [rows, units], in units of `allowance`, and the shape of
    the transfer curve over the elements that exceed it. Where one is not finite and the other is, the deviation
    is infinite; two values that are not finite agree.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        error = actual - expected
        excess = np.abs(error) / np.maximum(allowance, TINY)
    finite = np.isfinite(expected) & np.isfinite(actual)
    excess = np.where(finite, excess, np.where(np.isfinite(expected) == np.isfinite(actual), 0.0, np.inf))
    worst = float(np.minimum(excess.max(initial=0.0), 1e12))
    violating = excess > 1
    if worst <= 1:
        return Transfer(worst, 0.0, 0, int(violating.shape[-1]), 0.0, 0.0, 0.0, False, NAN, NAN, NAN, NAN, 0.0)
    units = violating.any(axis=0)
    x, y = expected[violating], actual[violating]
    others = np.abs(expected[:, units][~violating[:, units]])
    scale = float(np.std(expected, where=np.isfinite(expected))) if np.isfinite(expected).any() else 0.0
    offset, offset_spread = _centre(error[violating] / max(scale, TINY))
    ratio, ratio_spread = _centre(y[x != 0] / x[x != 0])
    return Transfer(
        violation=worst,
        fraction=float(violating.mean()),
        units=int(units.sum()),
        width=int(units.size),
        coverage=float(violating[:, units].mean()),
        zeroed=float((y == 0).mean()),
        tied=_tied(y),
        largest=bool(others.size == 0 or np.abs(x).min() >= others.max()),
        offset=offset,
        offset_spread=offset_spread,
        ratio=ratio,
        ratio_spread=ratio_spread,
        size=_rms(error[violating]) / max(_rms(expected), TINY),
    )


def _centre(values: Array) -> tuple[float, float]:
    """Median, and median absolute deviation over the median's magnitude."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return float("nan"), float("nan")
    middle = float(np.median(finite))
    deviation = float(np.median(np.abs(finite - middle)))
    return middle, deviation / abs(middle) if middle else float("inf")


def _rms(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0


def _tied(values: Array) -> float:
    _, counts = np.unique(np.abs(values), return_counts=True)
    return float(counts.max() / values.size)
