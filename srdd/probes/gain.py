"""Gain: how a small random change, and a large constant one, pass through a layer."""

from __future__ import annotations

import numpy as np

from srdd.measurements import NAN, Gain
from srdd.probes.samples import LayerSamples

DISCRETE = 0.85  # the documents' share of the median shift below which a unit counts as stuck


def measure_gain(samples: LayerSamples) -> Gain:
    """The gain under the random perturbation, and the quantiles and count under the DC offset; NaN and 0 where
    the excitation could not be made.
    """
    with np.errstate(invalid="ignore"):  # a response may overflow: what is read from it is then not finite
        lowest, highest, discrete = _offset_response(samples)
        return Gain(_small_signal_gain(samples), lowest, highest, discrete)


def _small_signal_gain(samples: LayerSamples) -> float:
    perturbed = samples.others.get("perturbed")
    if perturbed is None:
        return NAN
    change_in = float(np.std(perturbed.stream - samples.stream))
    return float(np.std(perturbed.output - samples.output)) / change_in if change_in else NAN


def _offset_response(samples: LayerSamples) -> tuple[float, float, int]:
    shifts = [
        (samples.others[name].output - samples.output) / (samples.others[name].stream - samples.stream)
        for name in ("offset_up", "offset_down")
        if name in samples.others
    ]
    if not shifts:
        return NAN, NAN, 0
    lowest, highest = np.quantile(np.concatenate(shifts), [0.001, 0.999])
    stuck = [_stuck_units(shift) for shift in shifts]
    return float(lowest), float(highest), max(stuck)


def _stuck_units(shift: np.ndarray) -> int:
    unit = np.median(shift, axis=0)
    middle = float(np.median(unit))
    return int((unit < DISCRETE * middle).sum()) if middle > 0 else 0
