"""Is a confidence worth what it says? How often the first finding was right, by the confidence it was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from srdd.campaign.outcome import Outcome
from srdd.campaign.rate import Rate, rate

# A finding starts at 0.5, at its threshold, and nears 1 far above it.
EDGES = (0.5, 0.75, 0.9, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class ConfidenceBin:
    """The first findings with a confidence from `low` up to `high` (the last bin includes it), and how many of them
    named the place of a fault that was there.
    """

    low: float
    high: float
    right: Rate


def calibration(outcomes: Iterable[Outcome]) -> tuple[ConfidenceBin, ...]:
    """The bins that hold any finding, of clean controls and of faults that changed nothing too."""
    first = [(outcome.findings[0].confidence, _right(outcome)) for outcome in outcomes if outcome.findings]
    return tuple(_bins(first))


def _bins(first: list[tuple[float, bool]]) -> Iterator[ConfidenceBin]:
    for low, high in pairwise(EDGES):
        held = [right for confidence, right in first if low <= confidence < high or confidence == high == EDGES[-1]]
        if held:
            yield ConfidenceBin(low, high, rate(sum(held), len(held)))


def _right(outcome: Outcome) -> bool:
    return outcome.fault is not None and outcome.changed > 0 and outcome.rightly_placed
