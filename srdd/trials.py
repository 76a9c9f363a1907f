"""How many runs it takes to catch a fault that comes and goes."""

from __future__ import annotations

from srdd.measurements import Measurements

TRIALS = 3  # runs of each layer on its own input, the model's own included
SURE = 0.95
# Beside them, what host replay follows: an offset each way and an amplification.
REPLAYED_BESIDE = 3


def chance_missed(rate: float, trials: int, replayed: bool) -> float:
    """The probability that a fault which acts in each run with probability `rate`, 0 to 1, and shows whenever it acts,
    is missed by `trials` runs. Repetition alone misses it when it acts in none of them or in all; where host replay
    follows (`replayed`), only when it acts in none, nor under the further inputs.
    """
    if replayed:
        return (1 - rate) ** (trials + REPLAYED_BESIDE)
    return (1 - rate) ** trials + rate**trials


def lowest_rate_found(trials: int, replayed: bool) -> float | None:
    """The smallest rate up to one half at which a fault is found with probability SURE; None where there is none."""
    low, high = 0.0, 0.5
    if chance_missed(high, trials, replayed) > 1 - SURE:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        if chance_missed(middle, trials, replayed) > 1 - SURE:
            low = middle
        else:
            high = middle
    return high


def trials_of(measurements: Measurements) -> int:
    """The number of runs that every layer measured had; 0 where none was repeated."""
    return min((layer.stability.trials for layer in measurements.layers if layer.stability), default=0)


def describe_trials(trials: int, replayed: bool) -> str:
    """What the number of runs is good for, as a line for people."""
    rate = lowest_rate_found(trials, replayed)
    if rate is None:
        return "runs of each layer: too few to find a fault that comes and goes with 95 %; give more --trials"
    return f"runs of each layer: a fault that acts in {rate:.0%} of the runs is found with 95 % (more: --trials)"
