"""Which of a checkpoint's weights are which of a model's parameters: the names of a bare model and of one with a head,
or of an encoder alone and of the whole, differ in what stands in front.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Naming:
    """The checkpoint's names are the model's with `added` in front, or without the `removed` one there."""

    added: str = ""
    removed: str = ""

    def stored(self, name: str) -> str | None:
        """The checkpoint's name of the model's parameter `name`; None where it can have none."""
        return self.added + name.removeprefix(self.removed) if name.startswith(self.removed) else None


def find_naming(model: Shapes, stored: Shapes) -> Naming | None:
    """The naming that finds most of the model's parameters in their shape, and of several the one that leaves the
    fewest stored weights below its prefix over. None where none finds any, or where two do equally well, such as for
    one of two towers of the same structure.
    """
    found: Counter[Naming] = Counter()
    for name, shape in stored.items():
        found.update(Naming(added=front) for front, rest in _splits(name) if model.get(rest) == shape)
    for name, shape in model.items():
        found.update(Naming(removed=front) for front, rest in _splits(name) if front and stored.get(rest) == shape)

    def fit(naming: Naming) -> tuple[int, int]:
        return found[naming], -sum(name.startswith(naming.added) for name in stored)

    ranked = sorted(found, key=fit, reverse=True)
    undecided = len(ranked) > 1 and fit(ranked[0]) == fit(ranked[1])
    return ranked[0] if ranked and not undecided else None


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """The name cut in two in each possible way, from nothing in front on."""
    yield "", name
    for place, letter in enumerate(name):
        if letter == ".":
            yield name[: place + 1], name[place + 1 :]
