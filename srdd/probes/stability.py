"""Instability: the same input, several runs. A layer that is deterministic repeats itself to within rounding."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from srdd.measurements import Stability, Transfer
from srdd.probes.samples import TINY, Array, LayerSamples
from srdd.probes.transfer import describe_transfer

BEYOND = 1e60  # stands for a difference that is not finite; its square is still a float64


def measure_stability(samples: LayerSamples) -> Stability:
    """Compare each repetition with the first run. A difference is judged in units of the rounding error that
    another order of summation may cause: unit roundoff times (|output| + |input| + rms(update)) of that
    element; one that is not finite exceeds any bound.
    """
    first, repeats = samples.output, samples.different_repeats()
    trials = 1 + samples.equal_repeats + len(repeats)
    if not repeats:
        return Stability(trials, spread=0.0, unit=0.0, element=0.0, changed=0.0)
    differences = [_finite(repeat.output - first) for repeat in repeats]
    allowance = samples.unit_roundoff * (np.abs(first) + np.abs(samples.stream) + np.sqrt(np.mean(samples.update**2)))
    allowance = np.maximum(allowance, TINY)
    scaled = [np.abs(difference) / allowance for difference in differences]
    unit = np.max([np.sqrt(np.mean(entry**2, axis=0)) for entry in scaled], axis=0)
    spread = max(float(np.std(difference)) for difference in differences)
    moved = np.max(scaled, axis=0) > 1
    concerned = moved.any(axis=0)
    agreed = first if samples.equal_repeats else None
    glitch = _glitch([first, *(repeat.output for repeat in repeats)], agreed, allowance, samples.unit_roundoff)
    return Stability(
        trials=trials,
        spread=spread / max(float(np.std(first)), TINY),
        unit=float(unit.max()),
        element=float(np.max(scaled)),
        changed=float(moved[:, concerned].mean()) if concerned.any() else 0.0,
        glitch=glitch if glitch and glitch.violation > 1 else None,
    )


def _glitch(runs: list[Array], agreed: Array | None, allowance: Array, roundoff: float) -> Transfer | None:
    """The run furthest from what several `agreed` on, or from the two that agree bit for bit; None where no two do."""
    if agreed is None:
        agreed = next((one for one, other in combinations(runs, 2) if np.array_equal(one, other, equal_nan=True)), None)
    if agreed is None:
        return None
    transfers = [describe_transfer(agreed, run, allowance, roundoff) for run in runs]
    return max(transfers, key=lambda transfer: transfer.violation)


def _finite(difference: Array) -> Array:
    return np.nan_to_num(difference, nan=BEYOND, posinf=BEYOND, neginf=-BEYOND)
