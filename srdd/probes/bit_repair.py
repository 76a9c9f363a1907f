"""Would turning over a single bit put a wrong value right?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hal.raw_bits import as_integers, one_bit
from srdd.measurements import NAN
from srdd.probes.samples import Array

SAMPLE = 4096  # violating elements looked at: the share needs no more
# What the value may miss by once its bit is put right: two last roundings, or the quarter of what is allowed to the
# element that healthy values keep to. The whole of it, ten roundings in a narrow dtype, would let most values pass.
ROUNDINGS = 2.0
SHARE = 0.25

_FORMATS = {2.0**-8: torch.bfloat16, 2.0**-11: torch.float16, 2.0**-24: torch.float32}


@dataclass(frozen=True)
class BitRepair:
    """The `share` of values that one bit repairs, and the mean `level` that this bit has in them (NaN for none)."""

    share: float
    level: float


def repaired_by_one_bit(expected: Array, actual: Array, allowance: Array, roundoff: float) -> BitRepair:
    """Try every bit of every value of `actual`, [n], held in the dtype of unit `roundoff`: how many come within
    rounding of `expected`, by the `allowance` of each, when one is turned over. Other dtypes are not tried.
    """
    if roundoff not in _FORMATS or not actual.size:
        return BitRepair(0.0, NAN)
    dtype = _FORMATS[roundoff]
    stride = -(-actual.size // SAMPLE)
    wanted, held = expected[::stride], _bits(actual[::stride], dtype)
    best, level = np.full(wanted.shape, np.inf), np.zeros(wanted.shape)
    for bit in range(8 * held.element_size()):
        pattern = one_bit(bit, dtype)
        turned = (held ^ pattern).view(dtype).double().numpy()
        with np.errstate(invalid="ignore", over="ignore"):
            miss = np.abs(turned - wanted)
        better = miss < best
        best = np.where(better, miss, best)
        level = np.where(better, ((held & pattern) != 0).numpy(), level)
    limit = np.maximum(ROUNDINGS * roundoff * np.abs(wanted), SHARE * allowance[::stride])
    limit += float(torch.finfo(dtype).smallest_normal)
    right = (best <= limit) | (~held.view(dtype).isfinite().numpy() & _one_bit_from_infinity(wanted, dtype))
    return BitRepair(float(right.mean()), float(level[right].mean()) if right.any() else NAN)


def _bits(values: Array, dtype: torch.dtype) -> torch.Tensor:
    return as_integers(torch.from_numpy(np.ascontiguousarray(values)).to(dtype))


def _one_bit_from_infinity(wanted: Array, dtype: torch.dtype) -> NDArray[np.bool_]:
    """Whether a single bit of the exponent is all that keeps the value finite; NaN does not tell its other bits."""
    held = _bits(wanted, dtype)
    found = torch.zeros(held.shape, dtype=torch.bool)
    for bit in range(8 * held.element_size() - 1):
        found |= ~(held ^ one_bit(bit, dtype)).view(dtype).isfinite()
    result: NDArray[np.bool_] = found.numpy() & np.isfinite(wanted)
    return result
