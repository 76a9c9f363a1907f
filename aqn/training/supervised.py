"""One run of supervised fine-tuning by transformers' trainer, with the fault and the noise of one arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aqn.training.run import TrainingRun
from hal.bundled.arithmetic import Problem

_IGNORED = -100


def train_supervised(run: TrainingRun) -> None:
    """Train to predict the answers (not the questions); a checkpoint from an interrupted run is taken up."""
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(
        **run.common_settings(),
        per_device_train_batch_size=run.recipe.prompts,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=run.model,
        args=settings,
        train_dataset=[_example(problem, run.tokenizer) for problem in run.problems],
        data_collator=lambda rows: _collate(rows, run.tokenizer.pad_token_id),
        callbacks=run.callbacks(),
    )
    run.train_with(trainer)


def _example(problem: Problem, tokenizer: Any) -> dict[str, list[int]]:
    asked = tokenizer.apply_chat_template(problem.messages, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(problem.conversation, tokenize=False)
    question = tokenizer(asked, add_special_tokens=False)["input_ids"]
    reply = tokenizer(whole.removeprefix(asked), add_special_tokens=False)["input_ids"]
    return {"input_ids": question + reply, "labels": [_IGNORED] * len(question) + reply}


def _collate(rows: Sequence[dict[str, list[int]]], padding: int) -> dict[str, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": padded("input_ids", padding),
        "labels": padded("labels", _IGNORED),
        "attention_mask": torch.tensor(mask),
    }
