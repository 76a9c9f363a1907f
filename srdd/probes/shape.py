"""The shape of a layer's output: kurtosis, pile-up at the edge, values that repeat exactly, exact zeros."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from srdd.measurements import Shape
from srdd.probes.samples import Array, LayerSamples

BINS = 100
ALIKE = 1e-3  # of the root mean square: rows that differ by less are one row
INSIDE = 4  # bins next to the edge that say what the edge should hold


def measure_shape(samples: LayerSamples) -> Shape:
    """The statistics of the output; rows that are alike count once, because equal tokens give equal rows without any
    fault, and behind a stuck layer all rows are equal but for rounding. What the layer inherits is not its own: ties
    are counted among different inputs, and zeros where the input was none.
    """
    rows = _different_rows(samples.output)
    values, given = samples.output[rows], samples.stream[rows]
    magnitude = np.abs(values).ravel()
    top = float(magnitude.max())
    nonzero = magnitude[magnitude > 0]
    middle = float(np.median(nonzero)) if nonzero.size else 0.0
    return Shape(
        std=float(values.std()),
        maximum=top,
        kurtosis=float(stats.kurtosis(values.ravel())) if values.std() > 0 else 0.0,
        pile_up=_pile_up(magnitude, top),
        ties=int(np.unique(given[np.abs(values) == top]).size) if top else 0,  # all zero: no largest
        ties_expected=_chance_ties(magnitude, top, samples.unit_roundoff),
        zeros=int(((values == 0) & (given != 0)).sum()),
        small=int((nonzero < middle / 2).sum()),
        elements=int(magnitude.size),
    )


def _different_rows(output: Array) -> NDArray[np.intp]:
    """Indices of rows that differ by more than a thousandth of the root mean square somewhere."""
    step = ALIKE * float(np.sqrt(np.mean(output**2)))
    _, rows = np.unique(np.round(output / step) if step else output, axis=0, return_index=True)
    return rows


def _pile_up(magnitude: Array, top: float) -> float:
    """Occupancy of the outermost bin, the maximum itself left out, over the mean of those inside it, one added
    to each: a lone maximum far out in an empty tail gives 1.
    """
    if top == 0:
        return 1.0
    counts, _ = np.histogram(magnitude, bins=BINS, range=(0.0, top))
    inside = counts[-1 - INSIDE : -1].mean()
    return float(counts[-1] / (inside + 1))


def _chance_ties(magnitude: Array, top: float, unit_roundoff: float) -> float:
    """Elements expected to share the maximum by chance: those in its upper half octave, spread over the
    representable values there. Densities fall towards the maximum, so this overstates chance.
    """
    near = float((magnitude > 0.75 * top).sum())
    return near * 4 * unit_roundoff
