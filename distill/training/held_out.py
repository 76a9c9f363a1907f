"""What a student makes of data that it was not trained on."""

from __future__ import annotations

from typing import Any, Final

import torch

from distill.objective import cross_entropy
from distill.students import Models
from distill.training.data import Data, batches, padding_token
from hal.evaluation import as_prompt, completions, is_right
from hal.structure import evaluation_mode
from hal.supervised import IGNORED

LOSS, ACCURACY, AGREEMENT = "loss", "accuracy", "agreement with the teacher"
_REPLY: Final = 64  # tokens; a bundled answer has five, a written-out one more


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
            losses += float(cross_entropy(ours, batch["labels"])) * number
            agreed += int((ours.argmax(-1) == theirs.argmax(-1))[:, :-1][told].sum())
            tokens += number
        found = {LOSS: losses / tokens, AGREEMENT: agreed / tokens}
        if data.problems:
            prompts = [as_prompt(models.tokenizer, problem.question) for problem in data.problems]
            replies = completions(student, models.tokenizer, prompts, max_new_tokens=_REPLY)
            pairs = zip(data.problems, replies, strict=True)
            found[ACCURACY] = sum(is_right(problem.answer, reply) for problem, reply in pairs) / len(replies)
    return found
