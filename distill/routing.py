"""Several teachers as one: which of them a student follows, example by example."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from distill.config import RoutingOptions
from distill.forward_pass import ForwardPass
from distill.key_values import KeyValues
from distill.losses.contrastive import pooled
from hal.errors import UsageError


class FixedRouting(nn.Module):
    """The same share for every example: `weights`, one a teacher, which are made to sum to 1."""

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        if not weights or min(weights) < 0 or not sum(weights) > 0:
            raise UsageError(f"teacher weights {list(weights)} must not be negative, nor all zero")
        self.register_buffer("shares", torch.tensor(weights) / sum(weights))

    def forward(self, student: torch.Tensor, teachers: torch.Tensor) -> torch.Tensor:
        """Shares [batch, teachers]."""
        shares: torch.Tensor = self.get_buffer("shares")
        return shares.expand(student.shape[0], -1)


class SimilarityRouting(nn.Module):
    """Shares by how similar, by cosine over `temperature`, a teacher's mean hidden state is to the student's."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self._temperature = temperature

    def forward(self, student: torch.Tensor, teachers: torch.Tensor) -> torch.Tensor:
        """Shares [batch, teachers] from `student` [batch, width] and `teachers` [batch, teachers, width]; detached, so
        that the student does not learn to choose.
        """
        similarity = functional.cosine_similarity(student.detach()[:, None], teachers.detach(), dim=-1)
        return (similarity / self._temperature).softmax(-1)


class LearnableRouting(nn.Module):
    """Shares by a linear gate on the student's mean hidden state, equal at first, learnt with the student."""

    def __init__(self, width: int, teachers: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, teachers)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, student: torch.Tensor, teachers: torch.Tensor) -> torch.Tensor:
        """Shares [batch, teachers]."""
        shares: torch.Tensor = self.gate(student.detach().float()).softmax(-1)
        return shares


def make_routing(options: RoutingOptions, width: int, teachers: int) -> nn.Module | None:
    """The routing of `options` between so many `teachers` of hidden `width`; None for one teacher, which needs none."""
    if options.weights is not None and len(options.weights) != teachers:
        raise UsageError(f"routing.weights holds {len(options.weights)} numbers for {teachers} teachers: give one each")
    if teachers == 1:
        return None
    if options.kind == "similarity":
        return SimilarityRouting(options.temperature)
    if options.kind == "learnable":
        return LearnableRouting(width, teachers)
    return FixedRouting(options.weights or [1.0] * teachers)


def concentration(shares: torch.Tensor) -> torch.Tensor:
    """How far shares [batch, teachers] are from equal: ln(teachers) less their mean entropy. As a loss it keeps a
    learnt routing from following one teacher alone.
    """
    entropy = -torch.xlogy(shares, shares).sum(-1).mean()
    return torch.log(torch.tensor(float(shares.shape[-1]))) - entropy


def summaries(teachers: Sequence[ForwardPass]) -> torch.Tensor:
    """Each teacher's mean last hidden state of each example, [batch, teachers, width]."""
    return torch.stack([pooled(teacher.hidden[-1], teacher.counted) for teacher in teachers], dim=1)


def fuse(teachers: Sequence[ForwardPass], shares: torch.Tensor) -> ForwardPass:
    """The passes of several teachers over the same tokens as one, in which keys, values, hidden states and attention
    are their means under `shares` [batch, teachers]; logits, which no loss reads, are the first teacher's. Raises
    UsageError for teachers that differ in shape.
    """
    first = teachers[0]
    if any(teacher.shapes() != first.shapes() for teacher in teachers):
        raise UsageError("teachers are fused layer by layer and must be of one shape: give teachers of equal size")

    def mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        weights = shares.T.to(tensors[0].dtype)
        return sum(
            (weights[at].view(-1, *[1] * (entry.dim() - 1)) * entry for at, entry in enumerate(tensors)),
            start=torch.zeros_like(tensors[0]),
        )

    layers = range(len(first.key_values))
    attention = first.attention and tuple(
        mean([teacher.attention_of(at) for teacher in teachers]) for at in range(len(first.attention))
    )
    return ForwardPass(
        logits=first.logits,
        hidden=tuple(mean([teacher.hidden[at] for teacher in teachers]) for at in range(len(first.hidden))),
        key_values=tuple(
            KeyValues(
                mean([teacher.key_values[at].keys for teacher in teachers]),
                mean([teacher.key_values[at].values for teacher in teachers]),
            )
            for at in layers
        ),
        attention=attention,
        counted=first.counted,
    )
