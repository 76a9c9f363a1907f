"""Run a student and its teachers over data and note the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from distill.config import DistillConfig
from distill.forward_pass import ForwardPass, run_pass
from distill.objective import Objective
from distill.students import Models


def passes(
    models: Models, config: DistillConfig, batch: dict[str, torch.Tensor]
) -> tuple[ForwardPass, list[ForwardPass]]:
    """A pass of the student, with gradients where they are on, and one of each teacher, without."""
    student = run_pass(models.student, batch, config.student_attention)
    with torch.no_grad():
        teachers = [run_pass(teacher, batch, config.teacher_attention) for teacher in models.teachers]
    return student, teachers


@torch.no_grad()
def loss_samples(
    models: Models,
    config: DistillConfig,
    data: Iterable[dict[str, torch.Tensor]],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Every loss of `config`, one number a batch, with attention weights in full."""
    objective: Objective | None = None
    samples: dict[str, list[float]] = {}
    for batch in data:
        student, teachers = passes(models, config, batch)
        objective = objective or Objective(config, student, teachers)
        for name, value in objective(student, teachers, batch["labels"]).named().items():
            samples.setdefault(name, []).append(float(value))
        progress()
    return samples
