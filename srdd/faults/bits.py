"""Faults of single bits. The bits are handled on the host: not every device has integer operators of every width."""

from __future__ import annotations

import torch

from hal.errors import UsageError
from hal.noise import stream_key, uniform
from hal.raw_bits import as_integers, integer_of

_MANTISSA = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}


def flip_bits(x: torch.Tensor, bits: str, seed: int) -> torch.Tensor:
    """`x` with one bit of each element turned over, one of `bits` for each hidden unit, chosen by `seed`."""
    return _of_bits(_as_integer(x) ^ _bit_of_unit(x, bits, seed), x)


def stick_bits(x: torch.Tensor, bits: str, level: int, seed: int) -> torch.Tensor:
    """`x` with one of `bits`, chosen for each hidden unit by `seed`, stuck at `level` (0 or 1)."""
    held, bit = _as_integer(x), _bit_of_unit(x, bits, seed)
    return _of_bits(held | bit if level else held & ~bit, x)


def round_low_bits(x: torch.Tensor, bits: str, away: bool) -> torch.Tensor:
    """`x` rounded to the format without the low `bits`: towards zero, or away from it."""
    held = _as_integer(x)
    low = held.new_tensor((1 << (bit_range(bits, x.dtype)[1] + 1)) - 1)
    rounded = _of_bits((held + low if away else held) & ~low, x)
    return torch.where(x.isfinite(), rounded, x)


def bit_range(bits: str, dtype: torch.dtype) -> tuple[int, int]:
    """The lowest and the highest bit that `bits` names in `dtype`, counted from the least significant, 0; raises
    UsageError when the format has no such bit.
    """
    width, mantissa = torch.finfo(dtype).bits, _MANTISSA[dtype]
    named = {
        "mantissa": (0, mantissa - 1),
        "exponent": (mantissa, width - 2),
        "sign": (width - 1, width - 1),
        "any": (0, width - 1),
    }
    if bits in named:
        return named[bits]
    first, _, last = bits.partition("-")
    low, high = int(first), int(last or first)
    if not low <= high < width:
        raise UsageError(f"bits '{bits}' do not exist in {dtype}: its bits are 0 to {width - 1}, the lower one first")
    return low, high


def _bit_of_unit(x: torch.Tensor, bits: str, seed: int) -> torch.Tensor:
    low, high = bit_range(bits, x.dtype)
    draws = uniform((x.shape[-1],), seed=seed, stream=stream_key("srdd.faults.bits"))
    chosen = low + (draws * (high - low + 1)).long().clamp(max=high - low)
    return (torch.ones_like(chosen) << chosen).to(integer_of(x.dtype))


def _as_integer(x: torch.Tensor) -> torch.Tensor:
    return as_integers(x.detach().to("cpu"))


def _of_bits(integer: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return integer.view(like.dtype).to(like.device)
