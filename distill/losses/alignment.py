"""Which token of a student is compared with which of a teacher."""

from __future__ import annotations

import torch


def common_positions(
    student: torch.Tensor, teacher: torch.Tensor, length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Align two sequences at their right ends: the last tokens of both, as many as the shorter one has, at most
    `length`. `student` [batch, S] and `teacher` [batch, T] say which tokens count (padding on either side does not).
    Returns the positions [batch, n] in each, and whether both tokens count there.
    """
    number = min(student.shape[1], teacher.shape[1])
    number = number if length is None else min(number, length)
    ours, theirs = last_positions(student, number), last_positions(teacher, number)
    return ours, theirs, student.bool().gather(1, ours) & teacher.bool().gather(1, theirs)


def last_positions(counted: torch.Tensor, number: int) -> torch.Tensor:
    """The positions [batch, number] of the last tokens that are `counted` [batch, tokens], in order; in rows that have
    fewer, others stand in front.
    """
    tokens = counted.shape[1]
    # Counted ones behind all others, each kind in order. As floats: accelerators sort integers on their host processor.
    order = torch.arange(tokens, device=counted.device) + tokens * counted.float()
    return order.topk(number, dim=1).indices.flip(1)


def at(tensor: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The tokens of `tensor` [batch, tokens, width] or [batch, tokens] at `positions` [batch, n]."""
    index = positions if tensor.dim() == 2 else positions[..., None].expand(-1, -1, tensor.shape[2])
    return tensor.gather(1, index)


def masked_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The mean of `values` [batch, tokens] under `weights` of the same shape, as a number."""
    return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)
