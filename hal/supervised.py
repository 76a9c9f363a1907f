"""Questions with answers as batches to train on: only the answer is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from hal.bundled.arithmetic import Problem

IGNORED: Final = -100  # a label that no loss counts

Example = dict[str, list[int]]


def example(problem: Problem, tokenizer: Any) -> Example:
    """The tokens of question and answer, in the tokenizer's chat template where it has one, and as labels those of the
    answer.
    """
    if getattr(tokenizer, "chat_template", None):
        asked = tokenizer.apply_chat_template(problem.messages, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(problem.conversation, tokenize=False)
    else:
        asked = f"{problem.question}\n"
        whole = f"{asked}{problem.answer}{tokenizer.eos_token or ''}"
    question = tokenizer(asked, add_special_tokens=False)["input_ids"]
    reply = tokenizer(whole.removeprefix(asked), add_special_tokens=False)["input_ids"]
    return {"input_ids": question + reply, "labels": [IGNORED] * len(question) + reply}


def collate(rows: Sequence[Example], padding: int) -> dict[str, torch.Tensor]:
    """The examples as one batch, [examples, longest]: input_ids filled on the right with the token `padding`, labels
    and attention_mask.
    """
    length = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": padded("input_ids", padding),
        "labels": padded("labels", IGNORED),
        "attention_mask": torch.tensor(mask),
    }
