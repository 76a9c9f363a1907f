"""Questions with answers as batches to train on: only the answer is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hal.bundled.arithmetic import Problem
from hal.errors import UsageError
from hal.evaluation import as_prompt
from hal.ops.loss import IGNORED

Example = dict[str, list[int]]


def asked(problem: Problem, tokenizer: Any) -> str:
    """The question as it stands before its answer in training: in the tokenizer's chat template where it has one, else
    a line of its own.
    """
    if not getattr(tokenizer, "chat_template", None):
        return f"{problem.question}\n"
    return as_prompt(tokenizer, problem.question)


def example(problem: Problem, tokenizer: Any) -> Example:
    """The tokens of question and answer, in the tokenizer's chat template where it has one, and as labels those of the
    answer. Raises UsageError for a template by which a conversation does not begin with what is asked.
    """
    prompt = asked(problem, tokenizer)
    question = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    reply = tokenizer(_told(problem, prompt, tokenizer), add_special_tokens=False)["input_ids"]
    return {"input_ids": question + reply, "labels": [IGNORED] * len(question) + reply}


def _told(problem: Problem, prompt: str, tokenizer: Any) -> str:
    """The answer as it stands behind `prompt`, with what ends it."""
    if not getattr(tokenizer, "chat_template", None):
        return f"{problem.answer}{tokenizer.eos_token or ''}"
    whole = str(tokenizer.apply_chat_template(problem.conversation, tokenize=False))
    if not whole.startswith(prompt):
        raise UsageError(
            f"the chat template of {tokenizer.name_or_path} asks with ...{prompt[-30:]!r}, and no conversation in it "
            "begins so: use a tokenizer whose template repeats its generation prompt before the answer"
        )
    return whole.removeprefix(prompt)


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
