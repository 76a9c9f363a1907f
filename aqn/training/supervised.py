"""One run of supervised fine-tuning by transformers' trainer, with the fault and the noise of one arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from aqn.injection import Injection
from aqn.training.callback import StepCallback
from aqn.training.recipe import Recipe
from aqn.training.run import common_settings, run
from hal.bundled.arithmetic import Problem

_IGNORED = -100


def train_supervised(
    model: Any,
    tokenizer: Any,
    train: Sequence[Problem],
    recipe: Recipe,
    seed: int,
    folder: Path,
    injection: Injection | None,
    note: Callable[[int, dict[str, float]], None],
    on_host: bool,
) -> None:
    """Train `model` in place to predict the answers (not the questions); a checkpoint in `folder` from an interrupted
    run is taken up.
    """
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(
        **common_settings(recipe, seed, folder, on_host),
        per_device_train_batch_size=recipe.prompts,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=[_example(problem, tokenizer) for problem in train],
        data_collator=lambda rows: _collate(rows, tokenizer.pad_token_id),
        callbacks=[StepCallback(injection, note)],
    )
    run(trainer, injection, folder)


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
