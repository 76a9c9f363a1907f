"""Training and evaluation data from files."""

from __future__ import annotations

import random
from pathlib import Path

from aqn.training.recipe import Problems, ProblemSource, Recipe
from hal.bundled.arithmetic import Problem
from hal.errors import UsageError
from hal.rows import question_and_answer, read_rows


def file_problems(train: Path, held_out: Path) -> ProblemSource:
    """A source that draws each seed's problems from two files; what it shows in training is never evaluated."""
    pools = {path: _problems(path) for path in (train, held_out)}
    shared = {problem.question for problem in pools[train]} & {problem.question for problem in pools[held_out]}
    if shared:
        raise UsageError(f"{len(shared)} questions are in both {train} and {held_out}: keep them apart")

    def draw(recipe: Recipe, seed: int) -> Problems:
        rng = random.Random(f"aqn.training:{seed}")  # noqa: S311 -- reproducible, not secret
        wanted = {train: recipe.problems_an_epoch, held_out: recipe.evaluated}
        short = next((path for path, count in wanted.items() if count > len(pools[path])), None)
        if short is not None:
            raise UsageError(
                f"{short} holds {len(pools[short])} problems and {wanted[short]} are needed: "
                "lower --steps, --prompts or --evaluated"
            )
        return Problems(rng.sample(pools[train], wanted[train]), rng.sample(pools[held_out], wanted[held_out]), [])

    return draw


def _problems(path: Path) -> list[Problem]:
    found = []
    for place, row in enumerate(read_rows(path), start=1):
        problem = question_and_answer(row)
        if problem is None:
            raise UsageError(f"{path} row {place} has no question with an answer")
        found.append(problem)
    return found
