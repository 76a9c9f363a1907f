"""How long and on what every arm trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hal.bundled.arithmetic import ASKED, TOLD, Problem, problems

Method = Literal["grpo", "supervised"]


@dataclass(frozen=True)
class Recipe:
    """What is the same for all arms: the `method`, `steps` in `epochs` epochs of `prompts` prompts each with
    `completions` completions (GRPO), the learning `rate`, and `evaluated` problems in each evaluation.
    """

    method: Method = "grpo"
    steps: int = 60
    epochs: int = 2
    prompts: int = 8
    completions: int = 8
    rate: float = 2e-4
    new_tokens: int = 5
    evaluated: int = 200

    @property
    def problems_an_epoch(self) -> int:
        """How many prompts one epoch holds."""
        return self.prompts * self.steps // self.epochs


@dataclass(frozen=True)
class Problems:
    """What one seed trains on and is evaluated with; `elsewhere` is of kinds that training never shows."""

    train: list[Problem]
    held_out: list[Problem]
    elsewhere: list[Problem]


ProblemSource = Callable[[Recipe, int], Problems]


def bundled_problems(recipe: Recipe, seed: int) -> Problems:
    """Questions asked outright for training, held-out ones of the same kinds, and held-out stories."""
    return Problems(
        problems("train", recipe.problems_an_epoch, seed, tuple(ASKED)),
        problems("held-out", recipe.evaluated, seed, tuple(ASKED)),
        problems("held-out", recipe.evaluated, seed, tuple(TOLD)),
    )
