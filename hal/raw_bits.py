"""The bits of a tensor as integers."""

from __future__ import annotations

import torch

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def integer_of(dtype: torch.dtype) -> torch.dtype:
    """The integer dtype as wide as `dtype`."""
    return _INTEGER_OF_SIZE[dtype.itemsize]


def as_integers(x: torch.Tensor) -> torch.Tensor:
    """The bits of `x`, in its shape, as integers of its width; a view where `x` is contiguous."""
    return x.contiguous().view(integer_of(x.dtype))


def one_bit(bit: int, dtype: torch.dtype) -> torch.Tensor:
    """The integer, as wide as `dtype`, of which `bit` alone is set; bit 0 is the least significant."""
    return torch.tensor(1, dtype=torch.int64).bitwise_left_shift(bit).to(integer_of(dtype))
