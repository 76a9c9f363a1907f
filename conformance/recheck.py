"""The dual standard's second look: is a device worse beyond what one draw of inputs explains?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from conformance.rows import Row
from conformance.standards import Dual

FEWEST_SEEDS = 200
SEEDS = 1000
RESAMPLES = 2000
CONFIDENCE = 0.95
_LARGEST_RATIO = 1e300


def recheck(standard: Dual, candidates: Sequence[Row], references: Sequence[Row]) -> str | None:
    """Why the candidate is worse in the rows of many seeds, paired, or None where it is not: for each ratio the
    bootstrap's 95 % interval of its median over seeds lies above 1. Fewer than 200 seeds decide nothing, which the
    standard counts as failed.
    """
    if len(candidates) < FEWEST_SEEDS:
        return f"{len(candidates)} seeds are too few for the recheck, it takes {FEWEST_SEEDS} to {SEEDS}"
    pairs = zip(candidates, references, strict=True)
    table = [standard.ratios(candidate, reference) for candidate, reference in pairs]
    for column in zip(*table, strict=True):
        if column[0].name.startswith("small"):
            continue  # a count over max(count, 1): below 1 by construction where the reference has none
        low = _median_interval_low([figure.value for figure in column])
        if low > 1.0:
            return f"{column[0].name}: the median over {len(table)} seeds is above 1 (95 % interval from {low:.3g})"
    return None


def _median_interval_low(ratios: Sequence[float]) -> float:
    """Lower end of the percentile bootstrap's interval of the median."""
    values = np.array([min(ratio, _LARGEST_RATIO) if math.isfinite(ratio) else _LARGEST_RATIO for ratio in ratios])
    draws = np.random.default_rng(0).choice(values, size=(RESAMPLES, len(values)))
    return float(np.quantile(np.median(draws, axis=1), (1 - CONFIDENCE) / 2))
