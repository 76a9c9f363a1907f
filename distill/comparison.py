"""The same student trained in several ways, seed by seed, and what may be said of the difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from distill.arms import ARMS
from distill.config import DistillConfig
from distill.data import Data
from distill.held_out import held_out
from distill.students import Models
from distill.training import Recipe, save_student, train_student
from hal.backend import TorchBackend
from hal.significance import Comparison, compare, correct

SCHEMA: Final = "distill-training/1"
BEFORE: Final = "untrained"


@dataclass
class Outcome:
    """One number a seed for each arm and measure, under `values[arm][measure]`; the first loss and the last of each arm
    in `terms[arm]`, the mean over seeds; and `comparisons` of the arms with the first of them.
    """

    arms: tuple[str, ...]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    terms: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)

    def to_json(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes null."""
        compared = [{**_finite(asdict(entry)), "verdict": entry.verdict} for entry in self.comparisons]
        return {"schema": SCHEMA, "settings": dict(settings), **asdict(self), "comparisons": compared}


@dataclass(frozen=True)
class Plan:
    """Which `arms` of `config` are trained by `recipe`, each with `seeds` seeds; `models` loads a fresh student, `data`
    draws what a seed is trained and tested on, and `keep` is where the last student of each arm is written.
    """

    config: DistillConfig
    arms: tuple[str, ...]
    recipe: Recipe
    seeds: int
    models: Callable[[], Models]
    data: Callable[[Any, int], Data]
    keep: Path | None = None


def compare_arms(plan: Plan, backend: TorchBackend, progress: Callable[[str, int, int], None]) -> Outcome:
    """Train every arm with every seed, measure the held-out data before and after, and compare. `progress` is told of
    arm, seed and step.
    """
    outcome = Outcome(plan.arms)
    for seed in range(plan.seeds):
        for arm in (BEFORE, *plan.arms):
            models = plan.models()
            data = plan.data(models.tokenizer, seed)
            if arm != BEFORE:
                _train(plan, arm, seed, models, data, backend, outcome, progress)
            for measure, value in held_out(models, data, plan.recipe.batch).items():
                outcome.values.setdefault(arm, {}).setdefault(measure, []).append(value)
    if plan.seeds > 1:
        first, *others = plan.arms
        pairs = [(arm, first) for arm in others] + [(first, BEFORE)]
        outcome.comparisons = correct(
            [
                compare(measure, (arm, outcome.values[arm][measure]), (other, outcome.values[other][measure]))
                for measure in outcome.values[first]
                for arm, other in pairs
            ]
        )
    return outcome


def _train(
    plan: Plan,
    arm: str,
    seed: int,
    models: Models,
    data: Data,
    backend: TorchBackend,
    outcome: Outcome,
    progress: Callable[[str, int, int], None],
) -> None:
    noted: list[dict[str, float]] = []

    def note(step: int, values: dict[str, float]) -> None:
        noted.append(values)
        progress(arm, seed, step + 1)

    train_student(models, ARMS[arm](plan.config), data, plan.recipe, backend, seed, note)
    terms = outcome.terms.setdefault(arm, {})
    for name in noted[0]:
        before, after = terms.get(name, (0.0, 0.0))
        terms[name] = before + noted[0][name] / plan.seeds, after + noted[-1][name] / plan.seeds
    if plan.keep is not None and seed == plan.seeds - 1:
        save_student(models, plan.keep / arm)


def _finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in numbers.items()
    }
