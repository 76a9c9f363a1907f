"""How far a student's keys and values are from a teacher's."""

from __future__ import annotations

from typing import Final, Literal, get_args

import torch
from torch.nn import functional

from distill.losses.alignment import masked_mean
from hal.errors import UsageError

Distance = Literal["smooth_l1", "mse", "smooth_l1_alpha"]
DISTANCES: Final = get_args(Distance)


def kv_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    distance: Distance = "smooth_l1",
    alpha: float = 1.0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean distance of `student` from `teacher`, both [batch, tokens, width], keys or values. `weights` [batch,
    tokens] say how much each token counts, 0 for padding; the sum is divided by theirs, so that equal weights of any
    size are no weights (divided by the number of elements, weights that sum to 1 would shrink the loss by the sequence
    length). "smooth_l1_alpha" is smooth L1 times `alpha`. Raises UsageError for shapes that differ.
    """
    if student.shape != teacher.shape:
        raise UsageError(
            f"a student's {list(student.shape)} and a teacher's {list(teacher.shape)} keys or values do not match: "
            "align their tokens and project their widths first"
        )
    pointwise = functional.mse_loss if distance == "mse" else functional.smooth_l1_loss
    tokens = pointwise(student.float(), teacher.float(), reduction="none").mean(-1)
    loss = tokens.mean() if weights is None else masked_mean(tokens, weights.to(tokens.dtype))
    return alpha * loss if distance == "smooth_l1_alpha" else loss
