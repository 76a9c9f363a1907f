"""The numbers of the problems: which sums, differences, products and two-step expressions are asked for.

Ranges are those of a first school year or two. They are what a model of 2.5 million parameters learns in well under
an hour on one core, so that its accuracy is high when it is sound and has far to fall when it is not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

_HIGHEST: Final = 100  # no lone sum or difference goes beyond
_SMALL: Final = 20  # the added or taken numbers of two-step expressions


@dataclass(frozen=True)
class Exercise:
    """An expression, the numbers in it from left to right, and its value, which is never negative."""

    expression: str
    numbers: tuple[int, ...]
    value: int


def draw(shape: str, rng: random.Random) -> Exercise:
    """An exercise of one of the `SHAPES`, its numbers drawn by `rng`."""
    return SHAPES[shape](rng)


def _sum(rng: random.Random) -> Exercise:
    a, total = sorted(rng.sample(range(1, _HIGHEST + 1), 2))
    return Exercise(f"{a}+{total - a}", (a, total - a), total)


def _difference(rng: random.Random) -> Exercise:
    b, a = sorted(rng.sample(range(1, _HIGHEST), 2))
    return Exercise(f"{a}-{b}", (a, b), a - b)


def _product(rng: random.Random) -> Exercise:
    a, b = _factors(rng)
    return Exercise(f"{a}*{b}", (a, b), a * b)


def _sum_less(rng: random.Random) -> Exercise:
    a, b = rng.randint(1, _SMALL), rng.randint(1, _SMALL)
    c = rng.randint(1, min(_SMALL, a + b))
    return Exercise(f"{a}+{b}-{c}", (a, b, c), a + b - c)


def _product_more(rng: random.Random) -> Exercise:
    (a, b), c = _factors(rng), rng.randint(1, _SMALL)
    return Exercise(f"{a}*{b}+{c}", (a, b, c), a * b + c)


def _product_less(rng: random.Random) -> Exercise:
    a, b = _factors(rng)
    c = rng.randint(1, min(_SMALL, a * b))
    return Exercise(f"{a}*{b}-{c}", (a, b, c), a * b - c)


def _factors(rng: random.Random) -> tuple[int, int]:
    return rng.randint(2, 9), rng.randint(2, 9)


SHAPES: Final[Mapping[str, Callable[[random.Random], Exercise]]] = {
    "+": _sum,
    "-": _difference,
    "*": _product,
    "+-": _sum_less,
    "*+": _product_more,
    "*-": _product_less,
}
