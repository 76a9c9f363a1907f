"""Arithmetic of a replay: wide on the host, or wide with every rounding of the device drawn at random.

The second is Monte Carlo arithmetic (Parker 1997): run the same computation in float64, disturb each result by a
relative error of standard deviation u, the device's unit roundoff, and the spread over a few runs measures how far
rounding can carry each element, conditioning included. Sums are disturbed further (accumulation.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hal.errors import HalError
from srdd.replay.accumulation import accumulation_spread, tie_spread

# Real roundings are uniform below u, the drawn ones below sqrt(3) u, so 8 of their standard deviations are about 14 of
# a healthy device's. Not +-u at random: errors that are all of one size add up to it, to nothing or to twice that, and
# miss what lies between.
WIDTH = 8.0

# The root mean square of 48 drawn numbers falls short of 1 by up to 0.38 in some of ten million elements. What ties may
# do is a bound, where no margin makes up for that.
_ROOM = 2.0

_FACTOR = 8.0  # natural logarithm of a factor that is counted as no larger

LARGE = 2.0**48  # its square, summed over 2**30 terms, is still a float32

_NARROW = (torch.float32, torch.bfloat16, torch.float16)

# What roundings of the argument change by factors, so that how far the result rounds is another in each run.
_EXPONENTIALS = frozenset({"exp", "exp2", "_softmax", "pow"})

_SOFTMAX = frozenset({"_softmax", "_safe_softmax"})

# Results that are copies, selections or comparisons of their inputs: nothing is rounded.
_EXACT_NAMES = (
    "_to_copy abs argmax argsort arange bernoulli bitwise_and bitwise_not bitwise_or cat clamp clamp_max "
    "clamp_min clone constant_pad_nd copy copy_ empty empty_like empty_strided eq eye fill fill_ flip full "
    "full_like gather ge gt index index_put index_put_ index_select isfinite isinf isnan le logical_and "
    "logical_not logical_or lt masked_fill masked_fill_ max maximum min minimum ne neg new_empty new_full "
    "new_ones new_zeros one_hot ones ones_like relu repeat repeat_interleave roll scalar_tensor scatter "
    "scatter_ select_scatter sign slice_scatter sort stack topk tril triu unbind where zero_ zeros zeros_like"
)
_EXACT = frozenset(_EXACT_NAMES.split())
_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv"})
_IEEE = frozenset({"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"})


class WeightsNotHeldError(HalError):
    """The code replayed reads weights that its copy holds no values of."""


class WideArithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
    """Run in float64 throughout: conversions to a narrower floating-point dtype keep the width. What is beyond `limit`,
    the largest number of a device's accumulators or results, becomes infinite, and what is below `least` zero.
    """

    def __init__(self, limit: float = math.inf, least: float = 0.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._limit = limit
        self._vanishing = least

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, without the narrowing it asks for. Raises WeightsNotHeldError for a tensor without values, of
        which some operators would make any number.
        """
        if any(isinstance(value, torch.Tensor) and value.is_meta for value in args):
            raise WeightsNotHeldError(f"{_name(func)} reads weights that the copy on the host does not hold")
        if _name(func) in _PRODUCTS:  # the others widen what is narrower themselves
            args = tuple(widened(value) if isinstance(value, torch.Tensor) else value for value in args)
        return self.finish(func, args, func(*args, **_widened(kwargs or {}, args)))

    def given(self, value: torch.Tensor) -> torch.Tensor:
        """What the computation is to take in the place of a value that it was given on the device."""
        return widened(value)

    def finish(self, func: Any, args: tuple[Any, ...], result: Any) -> Any:
        """The result as this arithmetic leaves it."""
        bounded = math.isfinite(self._limit) or self._vanishing > 0
        if bounded and isinstance(result, torch.Tensor) and result.is_floating_point() and not func.is_view:
            size = result.abs()
            kept = torch.where(size > self._limit, result.sign() * torch.inf, result)
            return torch.where(size < self._vanishing, 0.0, kept)
        return result


class OnlyIEEE(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as above
    """Notes whether the operators run are `only` such whose result IEEE 754 fixes to the last bit."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.only = True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func` as it is."""
        self.only = self.only and (not _rounds(func) or _name(func) in _IEEE)
        return func(*args, **(kwargs or {}))


class RoundedArithmetic(WideArithmetic):  # type: ignore[no-untyped-call]  # as above
    """Float64 with the device's roundings drawn at random by `generator`: unit roundoff `roundoff`, and no less than
    `least`, which subnormal numbers round by. How far each operation may round is worked out in the first run after
    `restart` and kept for the further ones, which repeat the same operations on values that differ by roundings alone.
    """

    def __init__(
        self, roundoff: float, generator: torch.Generator, limit: float = math.inf, least: float = 0.0
    ) -> None:
        super().__init__(limit)
        self._roundoff = roundoff
        self._least = least
        self._generator = generator
        self._steps: list[tuple[Any, torch.Tensor]] = []
        self._position = 0

    def restart(self) -> None:
        """Another run of the same computation begins."""
        self._position = 0

    def given(self, value: torch.Tensor) -> torch.Tensor:
        """The value, wide; disturbed if it is finer than the device's arithmetic, which rounds it where it meets
        others: code that converts it to their dtype finds nothing to convert here.
        """
        wide = super().given(value)
        if not value.is_floating_point() or torch.finfo(value.dtype).eps / 2 >= self._roundoff:
            return wide
        amount = (self._roundoff * wide.abs()).nan_to_num_(0.0, posinf=0.0)
        return wide.addcmul(amount, self._draw(wide))

    def finish(self, func: Any, args: tuple[Any, ...], result: Any) -> Any:
        """The result with each of its floating-point tensors disturbed."""
        result = super().finish(func, args, result)
        if not _rounds(func):
            return result
        if isinstance(result, torch.Tensor):
            return self._disturb(func, args, result)
        if isinstance(result, (tuple, list)):
            return type(result)(
                self._disturb(func, args, item) if isinstance(item, torch.Tensor) else item for item in result
            )
        return result

    def _disturb(self, func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor:
        if value.is_complex():  # rotations by complex numbers; either part rounds by the modulus at most
            parts = torch.view_as_real(value)
            amount = self._amount(func, args, value)[..., None].expand_as(parts)
            return torch.view_as_complex(parts.addcmul(amount, self._draw(parts)))
        if not value.is_floating_point():
            return value
        amount = self._amount(func, args, value)
        if func._schema.is_mutable:
            return value.addcmul_(amount, self._draw(value))
        return value.addcmul(amount, self._draw(value))

    def _amount(self, func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor:
        """How far each element of this operation's result may be carried, from the first run if it did the same."""
        position, self._position = self._position, self._position + 1
        if position < len(self._steps):
            known, amount = self._steps[position]
            if known is func and amount.shape == value.shape and _name(func) not in _EXPONENTIALS:
                return amount
        amount = (self._roundoff * value.abs()).clamp_min_(self._least).mul_(value != 0)
        spread = accumulation_spread(func, _name(func), args, value)
        if spread is not None:
            amount = amount.hypot(spread)
        if _name(func) in _SOFTMAX:
            ties = tie_spread(args[0], args[1], value, WIDTH, self._roundoff)
            amount = amount.maximum(_ROOM * ties)
        amount = amount.nan_to_num_(0.0, posinf=0.0)
        if position == len(self._steps):
            self._steps.append((func, amount))
        return amount

    def _draw(self, like: torch.Tensor) -> torch.Tensor:
        """A number of standard deviation 1 for each element: a window, at a random place, of numbers drawn once."""
        count = like.numel()
        if count > _BANK // 2:
            return torch.empty(like.shape, dtype=like.dtype).uniform_(-_WIDEST, _WIDEST, generator=self._generator)
        start = int(torch.randint(_BANK - count, (), generator=self._generator))
        return _bank()[start : start + count].view(like.shape)


@functools.cache
def _name(func: Any) -> str:
    name: str = func._schema.name
    return name.removeprefix("aten::")


@functools.cache
def _rounds(func: Any) -> bool:
    return not (func.is_view or _name(func) in _EXACT)


_BANK = 1 << 20
_WIDEST = 3**0.5


@functools.cache
def _bank() -> torch.Tensor:
    numbers = torch.empty(_BANK, dtype=torch.float64)
    return numbers.uniform_(-_WIDEST, _WIDEST, generator=torch.Generator().manual_seed(0))


def widened(value: torch.Tensor) -> torch.Tensor:
    """The tensor in float64 if it is floating-point, of twice that if it is complex, as it is otherwise."""
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value


def _widened(kwargs: dict[str, Any], args: tuple[Any, ...]) -> dict[str, Any]:
    wide = args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
    if wide and kwargs.get("dtype") in _NARROW:
        return {**kwargs, "dtype": torch.float64}
    return kwargs


Draw = Callable[[WideArithmetic], list[torch.Tensor]]


def accumulator_limit(tensors: Iterable[torch.Tensor]) -> float:
    """The largest number of a float32 accumulator where products and sums of these values may leave it; infinity where
    they cannot.
    """
    large = any(bool((tensor.abs() > LARGE).any()) for tensor in tensors if tensor.is_floating_point())
    return torch.finfo(torch.float32).max if large else math.inf


class RoundingSpread:
    """The root mean square deviation of `run(arithmetic)` from its `exact` values over runs with random roundings, one
    tensor for each, drawn with `seed` when asked for. `run` must return new tensors of the same shapes each time.
    """

    def __init__(
        self,
        run: Draw,
        exact: list[torch.Tensor],
        roundoff: float,
        seed: int,
        limit: float = math.inf,
        least: float = 0.0,
    ) -> None:
        self._run = run
        self._exact = exact
        self._generator = torch.Generator().manual_seed(seed)
        self._arithmetic = RoundedArithmetic(roundoff, self._generator, limit, least)
        self._squares = [torch.zeros_like(value) for value in exact]
        self._logarithms = [_Logarithms(value) for value in exact]
        self._drawn = 0

    def __call__(self, draws: int) -> list[torch.Tensor]:
        """The deviations from `draws` runs, those already made included."""
        for _ in range(self._drawn, draws):
            self._arithmetic.restart()
            values = self._run(self._arithmetic)
            for total, factors, value, centre in zip(self._squares, self._logarithms, values, self._exact, strict=True):
                deviation = value - centre
                total.add_(deviation.square())
                factors.add(value, deviation)
        self._drawn = max(self._drawn, draws)
        return [
            factors.widened((total / self._drawn).sqrt(), self._drawn)
            for total, factors in zip(self._squares, self._logarithms, strict=True)
        ]


class _Logarithms:
    """By what factors roundings change each element of `exact`. An exponential turns roundings of large arguments into
    factors, whose few largest make up the mean square: draws that missed them say nothing. An element that keeps its
    sign and changes by a factor of e (root mean square of the logarithm) or more is judged by its logarithm instead.
    """

    def __init__(self, exact: torch.Tensor) -> None:
        self._exact = exact
        self._half = torch.where(exact == 0, torch.inf, 0.5 * exact.abs())
        self._squares: torch.Tensor | None = None
        self._flipped: torch.Tensor | None = None

    def add(self, value: torch.Tensor, deviation: torch.Tensor) -> None:
        """Count one draw, which deviates by `deviation`."""
        far = deviation.abs() > self._half
        if not far.any():
            return
        if self._squares is None or self._flipped is None:
            self._squares, self._flipped = torch.zeros_like(self._half), torch.zeros_like(far)
        ratio = value[far] / self._exact[far]
        self._squares[far] += ratio.abs().log().clamp(-_FACTOR, _FACTOR).square()
        self._flipped[far] |= ratio < -0.5

    def widened(self, spread: torch.Tensor, draws: int) -> torch.Tensor:
        """The spread, larger where factors say so."""
        if self._squares is None or self._flipped is None:
            return spread
        logarithm = (self._squares / draws).sqrt()
        factor = torch.expm1(WIDTH * logarithm) / WIDTH
        judged = ~self._flipped & (logarithm >= 1)
        return torch.where(judged, torch.maximum(spread, factor * self._exact.abs()), spread)
