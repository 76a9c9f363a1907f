"""What one training step reads: lessons packed into rows but hidden from each other, and running text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from hal.bundled.lessons import Lesson
from hal.bundled.tokenizer import END_OF_TEXT
from hal.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PADDING: Final = -1  # no segment has this number


@dataclass(frozen=True)
class Batch:
    """Token ids [rows, length]; for each the weight of predicting it, its segment and its position in it."""

    ids: torch.Tensor
    weights: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """Boolean [rows, 1, query, key]: causal and within a segment; None, which means causal, for running text."""
        if not self.segments.any():
            return None
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return same.tril()[:, None]


def packed_lessons(source: Iterator[Lesson], rows: int, length: int, pad: int) -> Iterator[Batch]:
    """Fill rows of `length` tokens with whole lessons, batch after batch; the source must have no end."""
    waiting = next(source)
    while True:
        packed: list[list[Lesson]] = [[] for _ in range(rows)]
        for row in packed:
            space = length
            while len(waiting.ids) <= space:
                row.append(waiting)
                space -= len(waiting.ids)
                waiting = next(source)
            if not row:
                raise UsageError(
                    f"a lesson of {len(waiting.ids)} tokens does not fit into rows of {length}: make them longer"
                )
        yield _pack(packed, length, pad)


def _pack(rows: Sequence[Sequence[Lesson]], length: int, pad: int) -> Batch:
    shape = (len(rows), length)
    batch = Batch(
        ids=torch.full(shape, pad),
        weights=torch.zeros(shape),
        segments=torch.full(shape, _PADDING),
        positions=torch.zeros(shape, dtype=torch.long),
    )
    for index, row in enumerate(rows):
        start = 0
        for segment, lesson in enumerate(row):
            place = slice(start, start + len(lesson.ids))
            batch.ids[index, place] = torch.tensor(lesson.ids)
            batch.weights[index, place] = torch.tensor(lesson.weights)
            batch.weights[index, start] = 0.0  # nothing before it predicts the first token
            batch.segments[index, place] = segment
            batch.positions[index, place] = torch.arange(len(lesson.ids))
            start = place.stop
    return batch


def running_text(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, rows: int, length: int, seed: int
) -> Iterator[Batch]:
    """Cut the texts, joined in a new order every time round, into rows of `length` tokens, without end."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    encoded = [[*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]
    if not encoded:
        raise UsageError("there is no text to train on: give at least one passage")
    rng = random.Random(f"running text:{seed}")  # noqa: S311 -- reproducible, not secret
    waiting: list[int] = []
    while True:
        while len(waiting) < rows * length:
            rng.shuffle(encoded)
            waiting.extend(token for text in encoded for token in text)
        ids = torch.tensor(waiting[: rows * length]).view(rows, length)
        del waiting[: rows * length]
        weights = torch.ones(rows, length)
        weights[:, 0] = 0.0
        yield Batch(ids, weights, torch.zeros_like(ids), torch.arange(length).expand(rows, length))
