"""Does one of the last bits never change? Truncation to an even number, or a data line that is stuck, takes a bit from
every value of a hidden unit, or of a row, and stays within rounding wherever arithmetic is free to round elsewhere.

A sound device errs by some number of last places that does not depend on whether the exact value, rounded, has the
bit. Say that a share q of the errors leaves it as it is. Then n1 values that should have it, and n0 that should not,
all come without it with probability (1-q)**n1 * q**n0, which is 2**(-n H(n1/n)) at most whatever q is: H is the entropy
of a coin in bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from hal.raw_bits import as_integers

LOW = 3  # bits: in higher ones the errors themselves are few, and depend on how near a value lies to the bit's turn
SURPRISE = 40.0  # bits: one line in 10**12 of a sound device
_LARGEST = 0.99  # of the dtype's range, beyond which values saturate


def missing_bit(actual: torch.Tensor, exact: Callable[[], torch.Tensor]) -> float:
    """How much of a surprise, in units of `SURPRISE`, the strongest constant bit among the last of the values is in one
    unit or row of `actual`, [..., units]; 0 where all change. `exact`, in float64, is asked for where one is constant.
    """
    values = actual.reshape(-1, actual.shape[-1])
    known, bits = _known(values, actual.dtype), as_integers(values).numpy()
    found = [(axis, line, constant) for axis in (0, 1) for line, constant in _constant_bits(bits, known, axis)]
    if not found:
        return 0.0
    right = exact().reshape(values.shape)
    known &= _known(right, actual.dtype)
    rounded = as_integers(right.to(actual.dtype)).numpy()
    lines = ((np.take(rounded, line, 1 - axis), np.take(known, line, 1 - axis), bit) for axis, line, bit in found)
    return float(max(_surprise(line[mask], constant) for line, mask, constant in lines)) / SURPRISE


def _known(values: torch.Tensor, dtype: torch.dtype) -> NDArray[np.bool_]:
    """Which of the values are neither subnormal, which may be flushed, nor near the end of the range."""
    limits, size = torch.finfo(dtype), values.abs()
    known: NDArray[np.bool_] = ((size >= limits.smallest_normal) & (size <= _LARGEST * limits.max)).numpy()
    return known


def _constant_bits(bits: NDArray[np.integer], known: NDArray[np.bool_], axis: int) -> Iterator[tuple[int, int]]:
    """Each line along `axis` with as many known values as could surprise, and the low bits that are alike in all."""
    ones = np.bitwise_and.reduce(np.where(known, bits, -1), axis)
    zeros = ~np.bitwise_or.reduce(np.where(known, bits, 0), axis)
    constant = (ones | zeros) & (2**LOW - 1)
    for line in np.flatnonzero((constant != 0) & (known.sum(axis) >= SURPRISE)):
        yield int(line), int(constant[line])


def _surprise(rounded: NDArray[np.integer], constant: int) -> float:
    """In bits. Equal values err alike, and count once."""
    different = np.unique(rounded)
    shares = [np.mean((different >> bit) & 1) for bit in range(LOW) if constant >> bit & 1 and different.size]
    return max((different.size * _entropy(float(share)) for share in shares), default=0.0)


def _entropy(share: float) -> float:
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)
