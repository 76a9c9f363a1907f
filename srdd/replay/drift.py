"""Do roundings lean one way? Truncation stays within any rounding bound, and adds up over the layers.

The device's values are compared with the same operators run on the host in the same dtype. Where the two differ, and
the device did not just round once where the host rounded twice, a sound device errs to either side alike; one that
truncates, or rounds away from zero, errs to one side. Asked only of additions and multiplications (IEEE 754 leaves
them no freedom) and of matrix products in 16-bit formats, whose float32 accumulation is far below the last rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from srdd.probes.samples import Array, to_host
from srdd.replay.capture import ModuleCall
from srdd.replay.module import run_natively

# Truncating one bit moves half of the elements by one place, and up to half of those look as if rounded once: half of
# what remains is what a unit must lean by.
LEAN = 0.125
# And by this many standard deviations of a fair coin: one unit in 10**9, if sound devices differed in every element.
DEVIATIONS = 6.0


def rounding_drift(call: ModuleCall, clean: nn.Module, exact: list[torch.Tensor], actual: list[torch.Tensor]) -> float:
    """The largest lean of any hidden unit of the call's values, in units of what is allowed; NaN where the module's
    arithmetic leaves the device a choice.
    """
    native = run_natively(call, clean)
    if native is None or [value.dtype for value in native] != [value.dtype for value in actual]:
        return float("nan")
    return max(
        (
            _lean(to_host(mine), to_host(once.to(mine.dtype)), to_host(theirs))
            for mine, once, theirs in zip(native, exact, actual, strict=True)
            if mine.dim() > 0 and mine.numel()
        ),
        default=float("nan"),
    )


def _lean(native: Array, once: Array, actual: Array) -> float:
    finite = np.isfinite(native) & np.isfinite(actual)
    unexplained = finite & (actual != native) & (actual != once)
    count = unexplained.sum(axis=0)
    with np.errstate(invalid="ignore"):
        signs = np.sign(np.abs(actual) - np.abs(native))
    lean = np.abs(np.where(unexplained, signs, 0.0).sum(axis=0))
    allowed = np.maximum(LEAN * native.shape[0], DEVIATIONS * np.sqrt(count))
    return float((lean / allowed).max(initial=0.0))
