"""What a student makes of data that it was not trained on."""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from distill.objective import cross_entropy
from distill.students import Models
from distill.training.data import Data, batches, padding_token
from hal.evaluation import completions, is_right
from hal.ops.loss import IGNORED
from hal.structure import evaluation_mode
from hal.supervised import asked

LOSS, ACCURACY, AGREEMENT = "loss", "accuracy", "agreement with the teacher"
_MORE: Final = 8  # tokens that a reply may have beyond the longest answer


def held_out(models: Models, data: Data, size: int) -> dict[str, float]:
    """What the student makes of held-out data: its loss in nats a token, how often its most likely token is the first
    teacher's, and for questions how many it answers right.
    """
    student: Any = models.student
    device = next(student.parameters()).device
    losses, agreed, tokens = 0.0, 0, 0
    with evaluation_mode(student), torch.no_grad():
        for batch in batches(data.held_out, size, padding_token(models.tokenizer), device):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            ours, theirs = student(**inputs).logits, models.teachers[0](**inputs).logits
            told = batch["labels"][:, 1:] != IGNORED
            number = int(told.sum())
            if not number:
                continue
            losses += float(cross_entropy(ours, batch["labels"])) * number
            agreed += int((ours.argmax(-1) == theirs.argmax(-1))[:, :-1][told].sum())
            tokens += number
        found = {LOSS: losses / tokens, AGREEMENT: agreed / tokens}
        if data.problems:
            found[ACCURACY] = _accuracy(models, data)
    return found


def _accuracy(models: Models, data: Data) -> float:
    """How many questions are answered right, asked as in training."""
    student: Any = models.student
    prompts = [asked(problem, models.tokenizer) for problem in data.problems]
    longest = max(len(ids) for ids in models.tokenizer(prompts, add_special_tokens=False)["input_ids"])
    positions = getattr(student.config.get_text_config(), "max_position_embeddings", None) or math.inf
    room = max(1, int(min(_longest_answer(data) + _MORE, positions - longest)))
    replies = completions(student, models.tokenizer, prompts, max_new_tokens=room)
    pairs = zip(data.problems, replies, strict=True)
    return sum(is_right(problem.answer, reply) for problem, reply in pairs) / len(replies)


def _longest_answer(data: Data) -> int:
    """The most tokens that a held-out example predicts."""
    return max(sum(label != IGNORED for label in row["labels"]) for row in data.held_out)
