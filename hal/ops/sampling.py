"""Reproducible arguments for operators: the same bits on every machine, without exchanging data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch

from hal import noise
from hal.errors import UsageError

Size = Literal["tiny", "odd", "large"]
Values = Literal["normal", "uniform", "near_zero", "subnormal", "large", "nonfinite", "one_sided"]

SIZES: tuple[Size, ...] = get_args(Size)
VALUES: tuple[Values, ...] = get_args(Values)

# dtype: (integer of the same width, bits of the stored significand, exponent bias)
_FORMATS = {
    torch.float32: (torch.int32, 23, 127),
    torch.bfloat16: (torch.int16, 7, 127),
    torch.float16: (torch.int16, 10, 15),
}
_NEAR_ZERO = 2.0**-12
_UNIFORM = 32.0
_NONFINITE_EVERY = 8192
_OCTAVES = 4

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class SampleSpec:
    """What arguments to make: a floating `dtype`, a `size`, a range of `values` and a `seed`.

    Sizes: `tiny`; `odd`, with dimensions that are no power of two nor multiple of a block; `large`. The range is
    that of an operator's data argument; weights are always normal. Ranges: `normal` N(0, 1); `uniform` on [-16,
    16); `near_zero` N(0, 1) * 2**-12; `subnormal` below the smallest normal number of the dtype; `large` four
    octaves below the greatest value for which the operator's float32 intermediates stay finite; `nonfinite` N(0, 1)
    with a few Inf, -Inf and NaN; `one_sided` |N(0, 1)|. All tensors are on the host.
    """

    dtype: torch.dtype = torch.float32
    size: Size = "tiny"
    values: Values = "normal"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("size", self.size, SIZES), ("values", self.values, VALUES)):
            if value not in known:
                raise UsageError(f"sample {name} '{value}' is unknown: choose one of {', '.join(known)}")
        if self.dtype not in _FORMATS:
            raise UsageError(f"samples of dtype {self.dtype}: choose float32, bfloat16 or float16")

    def pick(self, *, tiny: Choice, odd: Choice, large: Choice) -> Choice:
        """The alternative for this size."""
        return {"tiny": tiny, "odd": odd, "large": large}[self.size]

    def data(self, argument: str, *shape: int, headroom: int = 1, limit: int = 128) -> torch.Tensor:
        """A tensor of this spec's range for the argument of that name. `large` values stay below 2**limit and
        `headroom` octaves below the dtype's greatest value.
        """
        stream = self._stream(argument)
        if self.values == "subnormal":
            return self._subnormal(argument, shape)
        if self.values == "large":
            return self._large(argument, shape, headroom, limit)
        if self.values == "uniform":
            spread = noise.uniform(shape, seed=self.seed, stream=stream, device="cpu")
            return ((spread - 0.5) * _UNIFORM).to(self.dtype)
        values = noise.normal(shape, seed=self.seed, stream=stream, device="cpu")
        if self.values == "near_zero":
            values = values * _NEAR_ZERO
        elif self.values == "one_sided":
            values = values.abs()
        elif self.values == "nonfinite":
            self._spoil(argument, values)
        return values.to(self.dtype)

    def weights(self, argument: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
        """A normal tensor, whatever the range: `offset + scale * N(0, 1)`, with powers of two for the scale."""
        values = noise.normal(shape, seed=self.seed, stream=self._stream(argument), device="cpu")
        return (values * scale + offset).to(self.dtype)

    def projection(self, argument: str, *shape: int, inputs: int) -> torch.Tensor:
        """Weights of a projection of `inputs` terms: normal, scaled by the power of two next to inputs**-0.5."""
        return self.weights(argument, *shape, scale=2.0 ** -round(math.log2(inputs) / 2))

    def ids(self, argument: str, *shape: int, high: int) -> torch.Tensor:
        """Integers in [0, high), int64."""
        return noise.integers(shape, 0, high, seed=self.seed, stream=self._stream(argument), device="cpu")

    def mask(self, argument: str, *shape: int) -> torch.Tensor:
        """Booleans, three in four of them true."""
        return self.ids(argument, *shape, high=4) > 0

    def _stream(self, argument: str) -> int:
        return noise.stream_key("sample", argument)

    def _bits(self, argument: str, shape: tuple[int, ...]) -> torch.Tensor:
        return noise.bits(shape, seed=self.seed, stream=self._stream(argument), device="cpu")

    def _subnormal(self, argument: str, shape: tuple[int, ...]) -> torch.Tensor:
        bits = self._bits(argument, shape)
        significand = (bits >> 1) & ((1 << _FORMATS[self.dtype][1]) - 1)
        return self._compose(bits, torch.zeros_like(bits), significand.clamp(min=1))

    def _large(self, argument: str, shape: tuple[int, ...], headroom: int, limit: int) -> torch.Tensor:
        _, width, bias = _FORMATS[self.dtype]
        bits = self._bits(argument, shape)
        top = min(bias + 1 - headroom, limit) - 1
        exponent = top - ((bits >> 1) % _OCTAVES) + bias
        return self._compose(bits, exponent, (bits >> 8) & ((1 << width) - 1))

    def _compose(self, sign: torch.Tensor, exponent: torch.Tensor, significand: torch.Tensor) -> torch.Tensor:
        """Floating-point numbers from their fields; the low bit of `sign` is the sign."""
        integer, width, _ = _FORMATS[self.dtype]
        pattern = (exponent << width) | significand
        values = pattern.to(integer).view(self.dtype)
        return torch.where(sign & 1 == 1, -values, values)

    def _spoil(self, argument: str, values: torch.Tensor) -> None:
        flat = values.view(-1)
        each = max(1, flat.numel() // _NONFINITE_EVERY)
        places = self.ids(f"{argument}.places", 3, each, high=max(1, flat.numel()))
        if flat.numel():
            for kind, where in zip((math.inf, -math.inf, math.nan), places, strict=True):
                flat[where] = kind
