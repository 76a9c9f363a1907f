"""The counter-based generator Philox4x32-10 (Salmon et al., SC'11) in 64-bit integer tensor operations."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

Word: TypeAlias = Any  # an int or an int64 tensor: both obey the same operators
Words: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

MASK32 = 0xFFFFFFFF
ROUNDS = 10

# The multipliers 0xD2511F53 and 0xCD9E8D57 less 2**32: a 32-bit word times one of these stays within
# 2**62, so that no product overflows a signed 64-bit integer on any device.
_MULTIPLIER_0 = 0xD2511F53 - (1 << 32)
_MULTIPLIER_1 = 0xCD9E8D57 - (1 << 32)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85


def philox4x32(counter: tuple[Word, Word, Word, Word], seed: int, rounds: int = ROUNDS) -> Words:
    """The four 32-bit words of Philox4x32 for `counter` under the 64-bit key `seed`, as int64 tensors with values in
    [0, 2**32). Each counter word is an integer or an int64 tensor with values in [0, 2**32), at least one of the first
    two a tensor; words that are plain integers cost nothing until they meet a tensor.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK32, seed >> 32
    for _ in range(rounds):
        high_0, low_0 = _multiply(_MULTIPLIER_0, c0)
        high_1, low_1 = _multiply(_MULTIPLIER_1, c2)
        c0, c1, c2, c3 = _mix(high_1, c1, k0), low_1, _mix(high_0, c3, k1), low_0
        k0, k1 = (k0 + _WEYL_0) & MASK32, (k1 + _WEYL_1) & MASK32
    return c0, c1, c2, c3


def _multiply(multiplier: int, word: Word) -> tuple[Word, Word]:
    """High and low 32 bits of `word * (multiplier + 2**32)`."""
    product = word * multiplier
    high = product >> 32
    high += word
    product &= MASK32
    return high, product


def _mix(high: Word, word: Word, key: int) -> Word:
    high ^= word
    high ^= key
    return high
