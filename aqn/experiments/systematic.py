"""Systematic error: results of products cut to fewer bits, towards zero, to the nearest, or away from zero; and whether
zero-mean noise hides any of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final, Literal

import torch
from torch import nn

from aqn.config import MODES, AqnConfig
from aqn.experiments.plan import Progress
from aqn.experiments.result import Cell, Result, environment
from aqn.experiments.subject import Subject
from aqn.injection import inject
from hal.errors import UsageError
from hal.hooks import Hooks
from hal.module_operators import OperatorCall
from hal.operator_calls import ArgumentRole
from hal.structure import find_layer_stack

Direction = Literal["nearest", "truncation", "away"]
SIGNIFICAND = 23  # bits of a float32 behind the leading one
NEAREST, TRUNCATION, AWAY, WITH_NOISE = "to nearest", "truncation", "away from zero", "truncation + AQN"
PAIRS: Final = ((TRUNCATION, NEAREST), (AWAY, NEAREST), (WITH_NOISE, TRUNCATION))
LOSS: Final = "loss"


def cut(x: torch.Tensor, bits: int, direction: Direction) -> torch.Tensor:
    """`x`, any floating dtype, with `bits` significand bits kept behind the leading one: towards zero, to the nearest
    (ties away from zero), or away from zero. Not for values within a factor of two of float32's largest.
    """
    if not 1 <= bits < SIGNIFICAND:
        raise UsageError(f"{bits} significand bits: give 1 to {SIGNIFICAND - 1}")
    dropped = SIGNIFICAND - bits
    pattern = x.float().view(torch.int32)
    if direction == "nearest":
        pattern = pattern + (1 << (dropped - 1))
    elif direction == "away":
        pattern = pattern + ((1 << dropped) - 1)
    return (pattern & ~((1 << dropped) - 1)).view(torch.float32).to(x.dtype)


class _Cutter:
    """Cuts every product, as `hal.hooks` calls it."""

    def __init__(self, bits: int, direction: Direction) -> None:
        self._bits, self._direction = bits, direction

    def argument(self, call: OperatorCall, tensor: torch.Tensor, role: ArgumentRole) -> torch.Tensor:
        """Leave factors alone."""
        return tensor

    def result(self, call: OperatorCall, tensor: torch.Tensor) -> torch.Tensor:
        """The product with fewer bits."""
        return cut(tensor, self._bits, self._direction)


@contextmanager
def systematic_error(model: nn.Module, bits: int, direction: Direction) -> Iterator[None]:
    """Cut the result of every product in every layer of `model` for the block."""
    stack = find_layer_stack(model)
    with Hooks(model) as hooks:
        for layer in range(len(stack)):
            hooks.handle_operators(stack.site(layer), MODES["matmul"], _Cutter(bits, direction))
        yield


def run_systematic(
    subject: Subject,
    bits: Sequence[int] = (2, 3, 4, 5, 7),
    sigma: float = 0.05,
    samples: int = 50,
    seeds: int = 8,
    progress: Progress | None = None,
) -> Result:
    """Loss under each direction of rounding at each number of bits, and under truncation with noise on every product;
    seeds as in the injection comparison.
    """
    result = Result(
        "systematic",
        f"Systematic rounding error in all products: {subject.name}, sigma {sigma}",
        {"bits": list(bits), "sigma": sigma, "samples": samples, "seeds": seeds},
        environment(subject.backend.versions()),
    )
    directions: dict[str, Direction] = {
        NEAREST: "nearest",
        TRUNCATION: "truncation",
        AWAY: "away",
        WITH_NOISE: "truncation",
    }
    done, total = 0, len(bits) * seeds
    for kept in bits:
        rows: dict[str, list[float]] = {name: [] for name in directions}
        for seed in range(seeds):
            entries = subject.draw(samples, seed)
            noise = {"sigma": sigma, "phases": ["validation"], "seed": seed, "draws": "fast"}
            for name, direction in directions.items():
                scope = (
                    inject(subject.model, AqnConfig.parse({"aqn": noise}), subject.backend)
                    if name == WITH_NOISE
                    else nullcontext()
                )
                # Entered last, so that noise is on the product before it is cut, as before any real format.
                with systematic_error(subject.model, kept, direction), scope:
                    rows[name].append(subject.loss(entries))
            done += 1
            if progress is not None:
                progress(done, total)
        result.cells += [Cell(f"{kept} bits", name, LOSS, tuple(values)) for name, values in rows.items()]
    result.compare(LOSS, PAIRS)
    result.statements = [_statement(result, first, second) for first, second in PAIRS]
    return result


def _statement(result: Result, first: str, second: str) -> str:
    entries = [entry for entry in result.comparisons if (entry.first, entry.second) == (first, second)]
    worse = [entry.name.partition(":")[0] for entry in entries if entry.verdict == "higher"]
    better = [entry.name.partition(":")[0] for entry in entries if entry.verdict == "lower"]
    return f"{first} against {second}: worse at {', '.join(worse) or 'none'}; better at {', '.join(better) or 'none'}"
