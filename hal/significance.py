"""What a handful of seeds allows to be said: intervals, Welch's test, correction for many comparisons, effect size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from hal.errors import UsageError

LEVEL = 0.05
CONFIDENCE = 0.95
FEWEST_SEEDS = 2  # below which no spread exists

_ROUNDING = 1e-9  # of a difference: equal ones, 0.06 - 0.04 and 0.04 - 0.02, differ by roundings alone


@dataclass(frozen=True)
class Summary:
    """Mean of one value a seed, its standard deviation (n - 1), and the 95 % interval of the mean by Student's t."""

    mean: float
    std: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.std:.4f}"


@dataclass(frozen=True)
class Comparison:
    """`first` against `second`: the `difference` of their means with its 95 % interval by Welch (`low`, `high`) and by
    the differences seed by seed, which share their data (`paired_low`, `paired_high`); `p` of Welch's test, `p_paired`
    of the paired one, both `_corrected` by Holm's method over all comparisons of the experiment; and Hedges' g, the
    difference in pooled standard deviations.
    """

    name: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_paired: float
    effect: float
    paired_low: float = math.nan
    paired_high: float = math.nan
    p_corrected: float = math.nan
    p_paired_corrected: float = math.nan

    @property
    def verdict(self) -> str:
        """What the corrected tests carry: "lower", "higher" or "not shown". Seeds that share their data are compared
        pair by pair; where that is impossible Welch's test decides. A difference between samples without any spread (a
        few equal accuracies) is not shown: no test applies.
        """
        if not self.p_decisive < LEVEL:
            return "not shown"
        return "lower" if self.difference < 0 else "higher"

    @property
    def p_decisive(self) -> float:
        """The corrected p that the verdict rests on: the paired one, or Welch's where pairs allow no test."""
        return self.p_corrected if math.isnan(self.p_paired_corrected) else self.p_paired_corrected


def summarise(values: Sequence[float]) -> Summary:
    """Mean, spread and interval of `values`; fewer than two are a UsageError, because they have no spread."""
    data = _checked(values)
    mean, std = float(data.mean()), float(data.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(data) - 1)) * std / math.sqrt(len(data))
    return Summary(mean, std, mean - half, mean + half, len(data))


def compare(name: str, first: tuple[str, Sequence[float]], second: tuple[str, Sequence[float]]) -> Comparison:
    """Compare two named samples of one value a seed. Samples of equal length are taken to share their seeds."""
    a, b = _checked(first[1]), _checked(second[1])
    difference = float(a.mean() - b.mean())
    spread = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    if spread <= _ROUNDING * abs(difference):
        same = difference == 0
        return Comparison(
            name,
            first[0],
            second[0],
            difference,
            difference,
            difference,
            1.0 if same else math.nan,  # without any spread there is nothing to test a difference against
            1.0 if same else math.nan,
            0.0 if same else math.copysign(math.inf, difference),
            difference,
            difference,
        )
    with warnings.catch_warnings():
        # scipy warns of samples that hardly spread, such as accuracies of 100 %; their p is still right enough.
        warnings.filterwarnings("ignore", message="Precision loss", category=RuntimeWarning)
        test = stats.ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    return Comparison(
        name,
        first[0],
        second[0],
        difference,
        float(interval.low),
        float(interval.high),
        float(test.pvalue),
        _paired(a, b),
        hedges_g(a, b),
        *_paired_interval(a, b),
    )


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with p-values corrected by Holm's step-down method, for Welch's and for the paired tests; order
    is kept.
    """
    welch = holm([entry.p for entry in comparisons])
    paired = holm([entry.p_paired for entry in comparisons])
    return [
        replace(entry, p_corrected=one, p_paired_corrected=other)
        for entry, one, other in zip(comparisons, welch, paired, strict=True)
    ]


def holm(values: Sequence[float]) -> list[float]:
    """Holm (1979): the k-th smallest of n p-values times n - k + 1, never below the one before it; NaN stays NaN and
    counts for nothing.
    """
    known = sorted((value, place) for place, value in enumerate(values) if not math.isnan(value))
    corrected = [math.nan] * len(values)
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        corrected[place] = highest
    return corrected


def hedges_g(a: np.ndarray, b: np.ndarray) -> float:
    """Difference of means in pooled standard deviations, corrected for small samples (Hedges 1981)."""
    degrees = len(a) + len(b) - 2
    pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / degrees)
    difference = float(a.mean() - b.mean())
    if pooled == 0:
        return 0.0 if difference == 0 else math.copysign(math.inf, difference)
    return difference / pooled * (1 - 3 / (4 * degrees - 1))


def _paired(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) != len(b):
        return math.nan
    differences = a - b
    if differences.std(ddof=1) <= _ROUNDING * abs(differences.mean()):
        return 1.0 if differences.mean() == 0 else math.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Precision loss", category=RuntimeWarning)
        return float(stats.ttest_rel(a, b).pvalue)


def _paired_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    if len(a) != len(b):
        return math.nan, math.nan
    differences = summarise((a - b).tolist())
    return differences.low, differences.high


def _checked(values: Sequence[float]) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if len(data) < FEWEST_SEEDS:
        raise UsageError(f"{len(data)} value has no spread: run at least {FEWEST_SEEDS} seeds (5 to say anything)")
    if not np.isfinite(data).all():
        raise UsageError(f"a result is not finite ({data.tolist()}): lower the noise or the fault")
    return data
