"""Tell the examples of a batch apart as the teacher does."""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional

from hal.errors import UsageError

TEMPERATURE: Final = 0.1


def pooled(hidden: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """The mean hidden state of each example, [batch, width], over the tokens that are `counted` [batch, tokens]."""
    weights = counted.to(torch.float32)[..., None]
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp_min(1)


def contrastive_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) of one vector an example, both [batch, width]: the student's
    must be more similar, by cosine over `temperature`, to the teacher's of the same example than to the others'. It is
    ln(batch) where all are alike. Raises UsageError for a batch of one or different shapes.
    """
    if student.shape != teacher.shape or student.shape[0] < 2:
        raise UsageError(
            f"contrasting {list(student.shape)} with {list(teacher.shape)}: both must be [batch, width] with 2 or more "
            "examples"
        )
    similarity = functional.normalize(student, dim=-1) @ functional.normalize(teacher, dim=-1).T
    return functional.cross_entropy(similarity / temperature, torch.arange(student.shape[0], device=student.device))
