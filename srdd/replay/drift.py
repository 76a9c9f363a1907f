"""Do values lean one way? Truncation and small common factors stay within any rounding bound, and add up over layers.

The device's values are compared with the host's of the same operators in the same dtype, and with the exact ones. A
sound device errs to either side alike; one that truncates, or multiplies by 1.01, errs to one side. Of additions and
multiplications (IEEE 754 leaves them no freedom) and of matrix products in 16-bit formats (whose float32 accumulation
is far below the last rounding) each value is known but for a step that a fused kernel rounds once. What else a part
does by itself in a 16-bit format, as norms and activations do, may come in other steps: there an element leans when it
lies two roundings outside both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from srdd.probes.samples import Array, several_roundings, to_host
from srdd.replay.capture import ModuleCall
from srdd.replay.module import run_natively

# Truncating one bit moves half of the elements by one place, and up to half of those look as if rounded once: half of
# what remains is what a unit must lean by.
LEAN = 0.125
# And by this many standard deviations of a fair coin: one unit in 10**9, if sound devices differed in every element.
DEVIATIONS = 6.0
ROUNDINGS = 2.0  # a step more than the last one, as a norm rounds before it multiplies by its weight
COMMON = 0.9  # of the leaning units' elements: what one factor, or one offset, must explain


@dataclass(frozen=True)
class Lean:
    """How far the hidden unit that leans most does so, in units of what chance allows (`drift`, NaN where the module's
    arithmetic leaves the device a choice; or how surprising it is that a unit or row lacks a bit), and the `factor` by
    which the leaning units' values are multiplied (NaN where they are not).
    """

    drift: float = float("nan")
    factor: float = float("nan")


UNASKED = Lean()


def rounding_drift(call: ModuleCall, clean: nn.Module, exact: list[torch.Tensor], actual: list[torch.Tensor]) -> Lean:
    """The strongest lean among the values of one call."""
    native = run_natively(call, clean)
    if native is None or [value.dtype for value in native.values] != [value.dtype for value in actual]:
        return UNASKED
    return strongest(
        lean(mine, once, theirs, native.determined)
        for mine, once, theirs in zip(native.values, exact, actual, strict=True)
        if mine.dim() > 0 and mine.numel()
    )


def strongest(leans: Iterable[Lean]) -> Lean:
    """The lean with the largest drift; that of nothing where none is known."""
    known = (lean for lean in leans if not np.isnan(lean.drift))
    return max(known, key=lambda lean: lean.drift, default=UNASKED)


def lean(
    native: torch.Tensor,
    exact: torch.Tensor,
    actual: torch.Tensor,
    determined: bool,
    given: torch.Tensor | None = None,
) -> Lean:
    """Of one tensor, [..., units]. Where `determined`, an element may be the native one, or the exact one rounded. Rows
    of which each is computed of another row `given` count each, else those in which the native values differ.
    """
    mine, theirs = to_host(native), to_host(actual)
    places = _different_rows(mine if given is None else to_host(given))
    mine, theirs, right = mine[places], theirs[places], to_host(exact)[places]
    # What is not finite is judged elsewhere.
    finite = np.isfinite(mine) & np.isfinite(right) & np.isfinite(theirs)
    mine, theirs, right = (np.where(finite, values, 0.0) for values in (mine, theirs, right))
    several = several_roundings(ROUNDINGS, right, actual.dtype)
    once, slack = (_rounded(right, actual.dtype), 0.0) if determined else (right, several)
    beyond = _beyond(theirs, mine, once, slack)
    leaning = np.abs((beyond * np.sign(right)).sum(axis=0))
    allowed = np.maximum(LEAN * len(places), DEVIATIONS * np.sqrt((beyond != 0).sum(axis=0)))
    units = leaning > allowed
    factor = _common_factor(right[:, units], theirs[:, units], several[:, units])
    return Lean(float((leaning / allowed).max(initial=0.0)), factor)


def _beyond(values: Array, first: Array, second: Array, slack: Array | float) -> Array:
    """For each of the `values` 1 where it lies above both others by more than `slack`, -1 where below both, else 0."""
    above = values > np.maximum(first, second) + slack
    below = values < np.minimum(first, second) - slack
    return above.astype(np.float64) - below


def _rounded(values: Array, dtype: torch.dtype) -> Array:
    return to_host(torch.from_numpy(values).to(dtype))


def _different_rows(values: Array) -> NDArray[np.intp]:
    """The first of each set of equal rows: what is computed from the same values errs alike, and counts once."""
    first: dict[bytes, int] = {}
    for place, row in enumerate(values):
        first.setdefault(row.tobytes(), place)
    return np.array(list(first.values()), dtype=np.intp)


def _common_factor(right: Array, theirs: Array, several: Array) -> float:
    """The factor that takes nearly all right values to the device's, within roundings; NaN where there is none but
    such as roundings make, or one offset does as well.
    """
    known = right != 0
    right, theirs, several = right[known], theirs[known], several[known]
    if not right.size:
        return float("nan")
    factor, offset = float(np.median(theirs / right)), float(np.median(theirs - right))
    multiplied = np.abs(theirs - factor * right) <= several * abs(factor)
    added = np.abs(theirs - right - offset) <= several
    beyond = np.abs(factor - 1) * np.abs(right) > several
    if multiplied.mean() < COMMON or added.mean() >= COMMON or beyond.mean() < COMMON:
        return float("nan")
    return factor
