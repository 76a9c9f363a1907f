"""Train a student: a loop as short as it can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from distill.config import DistillConfig
from distill.losses.cka import FEWEST
from distill.measure import passes
from distill.objective import Objective, cross_entropy
from distill.students import Models
from distill.training.data import Data, batches, padding_token
from hal.errors import UsageError
from hal.supervised import Example

Note = Callable[[int, dict[str, float]], None]

LONGEST_STEP: Final = 1.0  # norm of the gradient of all that is trained; a longer one is shortened to it


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: `steps` of `batch` examples at a constant `rate`."""

    steps: int = 200
    batch: int = 16
    rate: float = 5e-4


def train_student(models: Models, config: DistillConfig, data: Data, recipe: Recipe, seed: int, note: Note) -> None:
    """Train the student in place, with the projections and the routing that `config` asks for beside it. `note` is told
    of each step and its losses before they change a weight, and ends the training by what it raises. The order of the
    examples and what is random in the objective follow from `seed`.
    """
    _require_trainable(models.student)
    models.student.train()
    shown = _in_random_order(data.train, recipe.batch, seed)
    given = (next(batches(rows, len(rows), padding_token(models.tokenizer), _device(models))) for rows in shown)
    objective = _objective(models, _seeded(config, seed), data)
    torch.manual_seed(seed)  # of a student's dropout
    parameters = [entry for entry in (*models.student.parameters(), *objective.parameters()) if entry.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.0)
    for step, batch in zip(range(recipe.steps), given, strict=False):  # the batches never end
        optimizer.zero_grad()
        losses = _losses(models, objective, batch, step, note)
        note(step, {name: float(value.detach()) for name, value in losses.items()})
        losses["total"].backward()  # type: ignore[no-untyped-call]  # torch's
        nn.utils.clip_grad_norm_(parameters, LONGEST_STEP)
        optimizer.step()


def rehearse(models: Models, config: DistillConfig, data: Data, recipe: Recipe) -> None:
    """Compute the losses of the longest batch and forget them. Raises UsageError where models, configuration and data
    do not fit: now, and not in the midst of a training.
    """
    _require_trainable(models.student)
    longest = sorted(data.train, key=lambda row: len(row["input_ids"]), reverse=True)[: recipe.batch]
    tokens = sum(len(row["input_ids"]) for row in longest)
    if config.weights.cka and tokens < FEWEST:
        raise UsageError(f"CKA of {tokens} tokens, in the longest batch, needs {FEWEST}: give longer examples")
    batch = next(batches(longest, len(longest), padding_token(models.tokenizer), _device(models)))
    with torch.no_grad():
        student, teachers = passes(models, config, batch)
        Objective(config, student, teachers)(student, teachers, batch["labels"], 0)


def save_student(models: Models, folder: Path) -> None:
    """Write the student and its tokenizer as a checkpoint that transformers loads."""
    student: Any = models.student
    student.save_pretrained(folder)
    models.tokenizer.save_pretrained(folder)


def _losses(
    models: Models, objective: Objective, batch: dict[str, torch.Tensor], step: int, note: Note
) -> dict[str, torch.Tensor]:
    """The weighted sum, "total", and what it is made of."""
    student, teachers = passes(models, objective.config, batch)
    try:
        terms = objective(student, teachers, batch["labels"], step)
    except UsageError:
        # A student that has diverged has no attention either: its cross entropy is told of first.
        told = float(cross_entropy(student.logits.detach(), batch["labels"]))
        if not math.isfinite(told):
            note(step, {"ce": told})
        raise
    return {"total": objective.total(terms), **terms.named()}


def _objective(models: Models, config: DistillConfig, data: Data) -> Objective:
    """The objective with its widths read off one batch."""
    batch = next(batches(data.train[:2], 2, padding_token(models.tokenizer), _device(models)))
    with torch.no_grad():
        student, teachers = passes(models, config, batch)
    return Objective(config, student, teachers)


def _in_random_order(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Batches without end, every epoch in another order; what is left of an epoch below `size` is dropped, unless it is
    all there is.
    """
    generator = torch.Generator().manual_seed(seed)
    used = max(size, len(examples) - len(examples) % size)
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, used, size):
            yield [examples[at] for at in order[start : start + size]]


def _seeded(config: DistillConfig, seed: int) -> DistillConfig:
    """With the seed of the configuration moved on by that of the run."""
    return config.model_copy(update={"seed": (config.seed + seed) % (1 << 64)})


def _require_trainable(student: nn.Module) -> None:
    if any(entry.dtype == torch.float16 for entry in student.parameters()):
        raise UsageError("a student in float16 cannot be trained, small steps vanish: use --dtype float32 or bfloat16")


def _device(models: Models) -> torch.device:
    return next(models.student.parameters()).device
