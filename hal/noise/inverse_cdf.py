"""Gaussian values from 32 random bits by a table of the inverse distribution function, in integers.

A word gives a sign and a 31-bit two-sided tail probability. The probability's octave and the eight
bits below its leading one pick a table row; the rest interpolates linearly. Leading bits are read
from the exponent field of an exact integer-to-float32 cast, and the result is an integer multiple of
2**-21 below 8, which a float32 holds exactly. So no floating-point operation rounds, and rounding
mode, fused multiply-add, flushing of subnormals and evaluation order cannot change the result.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from statistics import NormalDist

import torch

TAIL_BITS = 31
ROWS_PER_OCTAVE = 256
GRID = 2.0**-21  # unit of the result
_FRACTION_BITS = 15  # of the 23-bit significand, those below the row index
_SLOPE_BITS = 2  # fractional bits of a slope; slope * fraction stays below 2**30
_EXACT_BITS = 24  # significant bits of a float32
_EXPONENT_BIAS = 127


def normal_from_bits(signed: torch.Tensor) -> torch.Tensor:
    """Standard normal values, float32, from `signed`, an int32 tensor of uniform random words; x and its bitwise
    complement give values of opposite sign. Largest magnitude 6.34, resolution 2**-21, absolute error of the quantile
    below 4e-6.
    """
    values, slopes = _tables(signed.device)
    sign = signed >> 31
    tail = signed ^ sign
    # Drop the low seven bits where the tail has more than 24 significant ones, to keep the cast exact.
    surplus = tail >> _EXACT_BITS
    surplus.clamp_(max=1)
    surplus *= 0x7F
    surplus &= tail
    tail ^= surplus
    code = tail.to(torch.float32).view(torch.int32)
    row = code >> _FRACTION_BITS
    code &= (1 << _FRACTION_BITS) - 1
    code *= slopes.index_select(0, row)
    code >>= _FRACTION_BITS + _SLOPE_BITS
    magnitude = values.index_select(0, row)
    magnitude -= code
    magnitude ^= sign
    magnitude -= sign
    return magnitude.to(torch.float32).mul_(GRID)


def table_entries() -> Iterator[tuple[float, float]]:
    """Value at the start of each row, in units of `GRID`, and its fall over the row, in quarters of that unit, before
    rounding; rows follow the bit pattern of the float32 tail, so those below one are unused except that of zero.
    """
    first_octave = _EXPONENT_BIAS * ROWS_PER_OCTAVE
    yield _quantile(0.0, 0.5), 0.0
    yield from itertools.repeat((0.0, 0.0), first_octave - 1)
    for octave in range(TAIL_BITS):
        # A tail stands for the middle of the interval of words that share it.
        centre = 0.5 if octave < _EXACT_BITS else 64.0
        step = 2.0**octave / ROWS_PER_OCTAVE
        edges = [_quantile(2.0**octave + row * step, centre) for row in range(ROWS_PER_OCTAVE + 1)]
        for upper, lower in itertools.pairwise(edges):
            yield upper, (upper - lower) * (1 << _SLOPE_BITS)


def _quantile(tail: float, centre: float) -> float:
    probability = min((tail + centre) * 2.0**-TAIL_BITS, 1.0)
    return -NormalDist().inv_cdf(probability / 2) / GRID


@functools.cache
def _rounded_table() -> tuple[tuple[int, ...], tuple[int, ...]]:
    values, slopes = zip(*((round(value), round(slope)) for value, slope in table_entries()), strict=True)
    return values, slopes


@functools.cache
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode(False):  # a cached inference tensor would fail later under autograd
        values, slopes = (torch.tensor(column, dtype=torch.int32, device=device) for column in _rounded_table())
        return values, slopes
