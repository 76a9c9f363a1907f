"""Has a task metric changed? Both runs see the same examples, so each is compared with itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
LOSS = "loss per token"


@dataclass(frozen=True)
class Comparison:
    """A task `metric` over `examples`, `before` and `after`. `gain` is the change for the better, `low` to `high` its
    95 % interval, and `p_value` the probability of so large a change either way when nothing has changed.
    """

    metric: str
    examples: int
    before: float
    after: float
    gain: float
    low: float
    high: float
    p_value: float

    @property
    def better(self) -> bool:
        """Whether the whole interval lies above no change."""
        return self.low > 0

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below no change."""
        return self.high < 0


def compare_shares(metric: str, before: Sequence[bool], after: Sequence[bool]) -> Comparison:
    """Compare the share of examples that are right. The p-value is McNemar's, exact: among the examples that changed,
    either direction is as likely. The interval is Newcombe's for paired shares (Statistics in Medicine 17, 1998,
    method 10), built of Wilson intervals, so that it keeps a width where no example changed.
    """
    table = np.zeros((2, 2), dtype=int)  # [right before][right after]
    for was, now in zip(before, after, strict=True):
        table[int(was), int(now)] += 1
    total = int(table.sum())
    gained, lost = int(table[0, 1]), int(table[1, 0])
    changed = gained + lost
    p_value = float(stats.binomtest(gained, changed).pvalue) if changed else 1.0
    share_before, share_after = table[1].sum() / total, table[:, 1].sum() / total
    low, high = _newcombe(table)
    return Comparison(
        metric, total, float(share_before), float(share_after), float(share_after - share_before), low, high, p_value
    )


def compare_losses(before: Sequence[float], after: Sequence[float]) -> Comparison:
    """Compare mean losses, smaller being better: the paired t-test and its interval. Where a loss is not finite there
    is no mean, and the share of texts with a finite loss is compared instead.
    """
    was, now = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    finite_before, finite_after = np.isfinite(was), np.isfinite(now)
    if not (finite_before.all() and finite_after.all()):
        return compare_shares("share of texts with a finite loss", finite_before.tolist(), finite_after.tolist())
    gains = was - now
    gain = float(gains.mean())
    low, high, p_value = _t_interval(gains)
    return Comparison(LOSS, len(gains), float(was.mean()), float(now.mean()), gain, low, high, p_value)


def _t_interval(gains: np.ndarray) -> tuple[float, float, float]:
    if not gains.any():
        return 0.0, 0.0, 1.0  # to the last bit the same: nothing to estimate
    if len(gains) < 2 or np.ptp(gains) == 0:
        return -math.inf, math.inf, 1.0  # nothing to estimate a spread from
    result = stats.ttest_1samp(gains, 0.0)
    interval = result.confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high), float(result.pvalue)


def _newcombe(table: np.ndarray) -> tuple[float, float]:
    total = int(table.sum())
    marginals = int(table[:, 1].sum()), int(table[1].sum())  # right after, right before
    after, before = (count / total for count in marginals)
    (after_low, after_high), (before_low, before_high) = (_wilson(count, total) for count in marginals)
    correlation = _correlation(table)

    def width(first: float, second: float) -> float:
        return math.sqrt(max(first**2 - 2 * correlation * first * second + second**2, 0.0))

    gain = after - before
    return (
        gain - width(after - after_low, before_high - before),
        gain + width(after_high - after, before - before_low),
    )


def _correlation(table: np.ndarray) -> float:
    """The phi coefficient of the paired table, with Newcombe's continuity correction; 0 for an empty margin."""
    margins = math.prod(float(margin) for margin in (*table.sum(0), *table.sum(1)))
    if margins == 0:
        return 0.0
    excess = float(table[0, 0] * table[1, 1] - table[0, 1] * table[1, 0])
    if excess > 0:
        excess = max(excess - table.sum() / 2, 0.0)
    return excess / math.sqrt(margins)


def _wilson(count: int, total: int) -> tuple[float, float]:
    interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
