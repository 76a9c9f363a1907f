"""The same student trained in several ways, seed by seed, and what may be said of the difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from distill.config import DistillConfig
from distill.students import Models
from distill.training.arms import ARMS
from distill.training.data import Data
from distill.training.held_out import held_out
from distill.training.trainer import Recipe, save_student, train_student
from hal.errors import UsageError
from hal.plain_json import finite
from hal.run_folder import made_once
from hal.significance import Comparison, compare, correct

SCHEMA: Final = "distill-training/1"
BEFORE: Final = "untrained"


@dataclass
class Outcome:
    """One number a seed for each arm and measure, under `values[arm][measure]`, likewise each loss at the first and at
    the last step under `losses[arm][name]`, and `comparisons` of the arms with the first of them.
    """

    arms: tuple[str, ...]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    losses: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)

    def to_json(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes null."""
        compared = [{**asdict(entry), "verdict": entry.verdict} for entry in self.comparisons]
        document = {"schema": SCHEMA, "settings": dict(settings), **asdict(self), "comparisons": compared}
        return {name: finite(value) for name, value in document.items()}


@dataclass(frozen=True)
class Plan:
    """Which `arms` of `config` are trained by `recipe`, each with `seeds` seeds, and the `folder` of finished runs;
    `models` loads a fresh student, `data` draws what a seed is trained and tested on. `save_students` keeps the last
    student of each arm there too.
    """

    config: DistillConfig
    arms: tuple[str, ...]
    recipe: Recipe
    seeds: int
    folder: Path
    models: Callable[[], Models]
    data: Callable[[Any, int], Data]
    save_students: bool = False

    def saves(self, arm: str, seed: int) -> bool:
        """Whether the student of this run is kept."""
        return self.save_students and arm != BEFORE and seed == self.seeds - 1


def compare_arms(plan: Plan, progress: Callable[[str, int, int], None]) -> Outcome:
    """Train every arm with every seed, save what the folder already holds, measure held-out data before and after, and
    compare. `progress` is told of arm, seed and step.
    """
    outcome = Outcome(plan.arms)
    for seed in range(plan.seeds):
        for arm in (BEFORE, *plan.arms):
            run = partial(_run, plan, arm, seed, progress)
            student = [plan.folder / arm / "config.json"] if plan.saves(arm, seed) else []
            record = made_once(plan.folder / f"{arm}-seed{seed}.json", run, student)
            for measure, value in record["values"].items():
                outcome.values.setdefault(arm, {}).setdefault(measure, []).append(value)
            for name, ends in record["losses"].items():
                outcome.losses.setdefault(arm, {}).setdefault(name, []).append(tuple(ends))
    if plan.seeds > 1:
        outcome.comparisons = _compared(outcome)
    return outcome


def _run(plan: Plan, arm: str, seed: int, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Train one arm with one seed (the untrained student not at all) and measure it."""
    models = plan.models()
    data = plan.data(models.tokenizer, seed)
    noted: list[dict[str, float]] = []

    def note(step: int, losses: dict[str, float]) -> None:
        _require_finite(f"{arm}, seed {seed}, step {step + 1}", losses)
        noted.append(losses)
        progress(arm, seed, step + 1)

    if arm != BEFORE:
        train_student(models, ARMS[arm](plan.config), data, plan.recipe, seed, note)
    values = held_out(models, data, plan.recipe.batch)
    _require_finite(f"{arm}, seed {seed}, held-out data", values)
    if plan.saves(arm, seed):
        save_student(models, plan.folder / arm)
    ends = {name: (noted[0][name], noted[-1][name]) for name in (noted[0] if noted else ())}
    return {"values": values, "losses": ends}


def _require_finite(where: str, losses: Mapping[str, float]) -> None:
    """Refuse to go on with a student that has diverged; the parts are named before their sum."""
    found = sorted(
        (name for name, value in losses.items() if not math.isfinite(value)), key=lambda name: name == "total"
    )
    if found:
        raise UsageError(f"{where}: the loss '{found[0]}' is {losses[found[0]]}, not finite: lower --rate")


def _compared(outcome: Outcome) -> list[Comparison]:
    """Each arm with the first, and that with the untrained student, by every measure, corrected together."""
    first, *others = outcome.arms
    pairs = [*((arm, first) for arm in others), (first, BEFORE)]
    values = outcome.values
    return correct(
        [
            compare(measure, (arm, values[arm][measure]), (other, values[other][measure]))
            for measure in values[first]
            for arm, other in pairs
        ]
    )
