"""All that pulls at a student, as one module that owns what is learnt beside it: projections and routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from distill.config import DistillConfig
from distill.forward_pass import ForwardPass
from distill.losses.cka import cka_loss
from distill.losses.codi import codi_loss
from distill.losses.contrastive import contrastive_loss, pooled
from distill.losses.key_value_match import KeyValueMatch
from distill.losses.layers import layer_pairs
from distill.losses.negative_control import shuffled
from distill.losses.projection import projection
from distill.routing import LearnableRouting, concentration, fuse, make_routing, summaries
from hal.errors import UsageError
from hal.ops.loss import IGNORED


@dataclass(frozen=True)
class Terms:
    """The losses of one batch, each a number before its weight: cross entropy `ce`; that of keys and values with all
    tokens alike, `kv`, and by attention, `kv_weighted`; `codi`, `cka`, `contrastive`; and the `concentration` of a
    learnt routing. None for those that the configuration leaves out.
    """

    ce: torch.Tensor
    kv: torch.Tensor
    kv_weighted: torch.Tensor | None = None
    codi: torch.Tensor | None = None
    cka: torch.Tensor | None = None
    contrastive: torch.Tensor | None = None
    concentration: torch.Tensor | None = None

    def named(self) -> dict[str, torch.Tensor]:
        """Those that there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Objective(nn.Module):
    """The losses of `config` between a student and its teachers, called with a pass of each over the same tokens; no
    gradient reaches a teacher. Where widths differ the student's are projected to the teacher's; projections and a
    learnable routing are its parameters, to be trained with the student and thrown away afterwards. `student` and
    `teachers` are one pass of each, off which widths are read. What is random follows from the seed of `config`.
    Raises UsageError where teachers, layers or weights do not fit.
    """

    def __init__(self, config: DistillConfig, student: ForwardPass, teachers: Sequence[ForwardPass]) -> None:
        super().__init__()
        if not teachers:
            raise UsageError("distillation needs a teacher: give one or more")
        teacher = teachers[0]
        width = teacher.hidden[-1].shape[-1]
        self.config = config
        self._generator = torch.Generator().manual_seed(config.seed)
        self.key_values = KeyValueMatch(config.kv, config.attention, student, teacher, self._generator)
        self.hidden_projection = projection(student.hidden[-1].shape[-1], width, self._generator)
        self.routing = make_routing(config.routing, width, len(teachers))
        self._cka_pairs = layer_pairs(config.cka_layers, len(student.hidden), len(teacher.hidden))
        self.to(student.logits.device)

    def forward(
        self, student: ForwardPass, teachers: Sequence[ForwardPass], labels: torch.Tensor, step: int | None = None
    ) -> Terms:
        """The losses of one batch; `labels` [batch, tokens] are the tokens to predict. `step` is that of the training,
        None for attention weights in full, as after their warm-up.
        """
        weights = self.config.weights
        ours = self.hidden_projection(student.hidden[-1].float())
        teacher, one_sided = self._teacher(teachers, pooled(ours, student.counted))
        counted = student.counted & teacher.counted
        source = shuffled(teacher, self._generator) if self.config.kv.shuffled else teacher
        kv, kv_weighted = self.key_values(student, source, step)
        return Terms(
            ce=cross_entropy(student.logits, labels),
            kv=kv,
            kv_weighted=kv_weighted,
            codi=codi_loss(ours, teacher.hidden[-1], counted) if weights.codi else None,
            cka=self._cka(student, teacher, counted) if weights.cka else None,
            contrastive=self._contrastive(ours, teacher, counted) if weights.contrastive else None,
            concentration=one_sided,
        )

    def total(self, terms: Terms) -> torch.Tensor:
        """The weighted sum of `terms`, the loss to be made small; `kv_weighted` stands for `kv` where there is one."""
        weights = {**self.config.weights.model_dump(), "concentration": self.config.routing.concentration}
        named = terms.named()
        total = named.pop("ce")
        weights["kv_weighted"] = weights["kv"]
        if "kv_weighted" in named:
            named.pop("kv")
        return total + torch.stack([weights[name] * value for name, value in named.items()]).sum()

    def _teacher(
        self, teachers: Sequence[ForwardPass], student: torch.Tensor
    ) -> tuple[ForwardPass, torch.Tensor | None]:
        """The teachers as one, chosen by the `student`'s mean states [batch, width], and how one-sided a learnt choice
        is.
        """
        teachers = [teacher.detached() for teacher in teachers]
        if self.routing is None:
            return teachers[0], None
        shares = self.routing(student, summaries(teachers))
        return fuse(teachers, shares), concentration(shares) if isinstance(self.routing, LearnableRouting) else None

    def _cka(self, student: ForwardPass, teacher: ForwardPass, counted: torch.Tensor) -> torch.Tensor:
        first = [student.hidden[layer] for layer, _ in self._cka_pairs]
        second = [teacher.hidden[layer] for _, layer in self._cka_pairs]
        return cka_loss(first, second, counted)

    def _contrastive(self, ours: torch.Tensor, teacher: ForwardPass, counted: torch.Tensor) -> torch.Tensor:
        theirs = pooled(teacher.hidden[-1], counted)
        return contrastive_loss(pooled(ours, counted), theirs, self.config.temperature)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats a predicted token, from logits [batch, tokens, vocabulary] and labels [batch, tokens], shifted here."""
    predicted = logits[:, :-1].float().flatten(0, 1)
    return functional.cross_entropy(predicted, labels[:, 1:].flatten(), ignore_index=IGNORED)
