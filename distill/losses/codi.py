"""Pull a student's hidden states to a teacher's."""

from __future__ import annotations

import torch
from torch.nn import functional

from distill.losses.alignment import masked_mean
from hal.errors import UsageError


def codi_loss(student: torch.Tensor, teacher: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """The mean squared distance of hidden states [batch, tokens, width] over the tokens that are `counted` [batch,
    tokens] (CODI, Shen et al. 2025, arXiv 2502.21074, aligns the states before the answer). Raises UsageError where the
    widths differ: project the student's first.
    """
    if student.shape != teacher.shape:
        raise UsageError(
            f"hidden states {list(student.shape)} and {list(teacher.shape)} do not match: project the student's"
        )
    distances = functional.mse_loss(student.float(), teacher.float(), reduction="none").mean(-1)
    return masked_mean(distances, counted.to(distances.dtype))
