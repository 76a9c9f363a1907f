"""Compare values with what they should have been, element by element, and describe how they differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from srdd.measurements import NAN, Transfer
from srdd.probes.bit_repair import repaired_by_one_bit
from srdd.probes.samples import TINY, Array

WHOLE = 0.5  # more than half of a row or a unit counts as all of it
DIVERSE = 8  # elements from which on their spread says something


def describe_transfer(expected: Array, actual: Array, allowance: Array, roundoff: float) -> Transfer:
    """The deviation of `actual` from `expected`, both [rows, units], in units of `allowance`, and the shape of
    the transfer curve over the elements that exceed it. `roundoff` is the unit roundoff of the dtype that `actual`
    was held in. Where one is not finite and the other is, the deviation is infinite; two values that are not
    finite agree.
    """
    exceeded = excess(expected, actual, allowance)
    worst = _capped(exceeded)
    if worst <= 1:
        return no_violation(worst, int(exceeded.shape[-1]))
    violating = exceeded > 1
    with np.errstate(invalid="ignore", over="ignore"):
        error = actual - expected
    units = violating.any(axis=0)
    x, y = expected[violating], actual[violating]
    within = ~violating & units
    others = np.abs(expected[within])
    constant, alike = _commonest(y)
    through = np.abs(expected[within & (actual != constant)])
    repaired = repaired_by_one_bit(x, y, np.broadcast_to(allowance, expected.shape)[violating], roundoff)
    scale = float(np.std(expected, where=np.isfinite(expected))) if np.isfinite(expected).any() else 0.0
    offset, offset_deviation = _centre(error[violating] / max(scale, TINY))
    ratio, ratio_deviation = _centre(y[x != 0] / x[x != 0])
    return Transfer(
        violation=worst,
        fraction=float(violating.mean()),
        units=int(units.sum()),
        width=int(units.size),
        coverage=_coverage(violating),
        zeroed=float((y == 0).mean()),
        tied=_tied(y),
        largest=bool(others.size == 0 or np.abs(x).min() >= others.max()),
        offset=offset,
        offset_spread=_relative(offset_deviation, abs(offset)),
        ratio=ratio,
        ratio_spread=_relative(ratio_deviation, min(abs(ratio), abs(ratio - 1))),
        size=_rms(error[violating]) / max(_typical(expected), TINY),
        constant=alike,
        diverse=bool(x.size >= DIVERSE and _spread(x) > 0.5 * _spread(expected)),
        one_bit=repaired.share,
        bit_level=repaired.level,
        spared_large=bool(through.size and through.max() > np.abs(x).max()),
        not_finite=float((~np.isfinite(y)).mean()),
        shrunk=float((np.abs(y) < np.abs(x)).mean()),
    )


def excess(expected: Array, actual: Array, allowance: Array) -> Array:
    """The deviation of each element over its allowance; infinite where one is finite and the other is not, 0 where
    neither is.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        shares: Array = np.abs(actual - expected) / np.maximum(allowance, TINY)
    if np.isfinite(shares).all():
        return shares
    finite = np.isfinite(expected), np.isfinite(actual)
    agree = (finite[0] == finite[1]) | np.isinf(allowance)
    return np.where(finite[0] & finite[1], shares, np.where(agree, 0.0, np.inf))


def largest_excess(expected: Array, actual: Array, allowance: Array) -> float:
    """The `violation` of the transfer alone."""
    return _capped(excess(expected, actual, allowance))


def no_violation(share: float, width: int) -> Transfer:
    """The transfer of values that all stay within their allowance, by this `share` of it at most."""
    return Transfer(share, 0.0, 0, width, 0.0, 0.0, 0.0, False, NAN, NAN, NAN, NAN, 0.0)


def _capped(excess: Array) -> float:
    return float(np.minimum(excess.max(initial=0.0), 1e12))


def _centre(values: Array) -> tuple[float, float]:
    """Median, and median absolute deviation from it."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return float("nan"), float("nan")
    middle = float(np.median(finite))
    return middle, float(np.median(np.abs(finite - middle)))


def _relative(deviation: float, size: float) -> float:
    return deviation / size if size else float("inf")


def _rms(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0


def _typical(values: Array) -> float:
    """The geometric mean of root mean square and mean magnitude: a few values far out raise the former alone."""
    finite = np.abs(values[np.isfinite(values)])
    return float(np.sqrt(_rms(finite) * np.mean(finite))) if finite.size else 0.0


def _coverage(violating: NDArray[np.bool_]) -> float:
    """The share violating inside the units concerned, or inside the rows concerned where it fills those instead."""
    units = float(violating[:, violating.any(axis=0)].mean())
    rows = float(violating[violating.any(axis=1)].mean())
    return rows if rows > WHOLE else units


def _spread(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.std(finite)) if finite.size else 0.0


def _commonest(values: Array) -> tuple[float, float]:
    """The value that most of them are, and their share."""
    distinct, counts = np.unique(values, return_counts=True)
    return float(distinct[counts.argmax()]), float(counts.max() / values.size)


def _tied(values: Array) -> float:
    sizes = np.abs(values)
    return float((sizes == sizes.max()).mean())
