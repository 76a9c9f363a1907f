"""A share of cases with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class Rate:
    """`count` out of `of`, with the Wilson 95 % interval from `low` to `high` (None of nothing)."""

    count: int
    of: int
    low: float | None
    high: float | None


def rate(count: int, of: int) -> Rate:
    """A rate with its Wilson interval."""
    if not of:
        return Rate(count, of, None, None)
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return Rate(count, of, float(interval.low), float(interval.high))
