"""The loss of keys and values over all layers that are compared."""

from __future__ import annotations

import torch
from torch import nn

from distill.config import AttentionWeighting, KvOptions
from distill.forward_pass import ForwardPass
from distill.losses.alignment import at, common_positions
from distill.losses.attention_weights import WarmUp, token_importance
from distill.losses.compression import kept_tokens
from distill.losses.kv_loss import kv_loss
from distill.losses.layers import layer_pairs
from distill.losses.projection import projection


class KeyValueMatch(nn.Module):
    """The distance of a student's keys and values from a teacher's, both aligned at the last token: the mean over keys,
    values and the layers of `options`. `student` and `teacher` are a pass of each, off which widths are read; where
    they differ, a projection is learnt, which `generator` draws.
    """

    def __init__(
        self,
        options: KvOptions,
        attention: AttentionWeighting,
        student: ForwardPass,
        teacher: ForwardPass,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self._options = options
        self._source = attention.source
        self._warm_up = WarmUp(attention.steps, attention.source)
        self._pairs = layer_pairs(options.layers, len(student.key_values), len(teacher.key_values))
        self.projections = nn.ModuleList(
            projection(ours.shape[-1], theirs.shape[-1], generator)
            for layer, other in self._pairs
            for ours, theirs in zip(student.key_values[layer].tokens, teacher.key_values[other].tokens, strict=True)
        )

    def forward(
        self, student: ForwardPass, teacher: ForwardPass, step: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss with all tokens alike, and by attention (None where no attention is used). `step` is that of the
        training, None for attention in full.
        """
        plain: list[torch.Tensor] = []
        weighted: list[torch.Tensor] = []
        for number, (layer, other) in enumerate(self._pairs):
            ours, theirs, both = common_positions(student.counted, self._kept(teacher, other), self._options.length)
            alike = both.float()
            importance = self._importance(
                (student, layer, ours) if self._source == "student" else (teacher, other, theirs), alike, step
            )
            tokens = zip(student.key_values[layer].tokens, teacher.key_values[other].tokens, strict=True)
            for place, (mine, wanted) in enumerate(tokens, start=2 * number):
                first, second = self.projections[place](at(mine, ours).float()), at(wanted, theirs).float()
                plain.append(self._distance(first, second, alike))
                if importance is not None:
                    weighted.append(self._distance(first, second, importance))
        return torch.stack(plain).mean(), torch.stack(weighted).mean() if weighted else None

    def _kept(self, teacher: ForwardPass, layer: int) -> torch.Tensor:
        """Which of the teacher's tokens are left after compression."""
        options = self._options
        attention = teacher.attention_of(layer) if options.compression == "r_kv" else None
        kept = teacher.key_values[layer], teacher.counted, attention
        return kept_tokens(options.compression, options.length, *kept, options.balance)

    def _importance(
        self, source: tuple[ForwardPass, int, torch.Tensor], alike: torch.Tensor, step: int | None
    ) -> torch.Tensor | None:
        """How much each compared token counts, by the attention of a pass in a layer at the tokens' positions there."""
        if self._source == "none":
            return None
        made, layer, positions = source
        received = token_importance(made.attention_of(layer), made.counted)
        importance = token_importance(at(received, positions), alike)
        return importance if step is None else self._warm_up.weights(importance, alike, step)

    def _distance(self, ours: torch.Tensor, theirs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return kv_loss(ours, theirs, self._options.distance, self._options.alpha, weights)
