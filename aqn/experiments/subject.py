"""What an experiment is done on: a model and data that it is measured by."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hal.backend import TorchBackend
from hal.bundled import model_dir
from hal.bundled.arithmetic import Problem, problems
from hal.bundled.evaluate import Accuracy, replies, text_loss
from hal.bundled.text import passages
from hal.errors import UsageError
from hal.evaluation import is_right
from hal.models import load_model
from hal.rows import ANSWERS, QUESTIONS, question_and_answer, read_rows

Task = Literal["arithmetic", "text"]


@dataclass(frozen=True)
class Entry:
    """One piece of data: a `text` to predict, and where it is a question with an answer, the `problem`."""

    text: str
    problem: Problem | None = None


@dataclass(frozen=True)
class Subject:
    """A loaded model with its tokenizer on its backend, and where its data comes from: `entries` of a file, or with
    None the bundled `task`, of which every seed draws its own.
    """

    name: str
    model: Any
    tokenizer: Any
    backend: TorchBackend
    task: Task
    entries: tuple[Entry, ...] | None
    new_tokens: int

    def draw(self, count: int, seed: int) -> list[Entry]:
        """`count` entries chosen by `seed`, never in training; more than there are is a UsageError."""
        if self.entries is None and self.task == "arithmetic":
            return [self._told(problem) for problem in problems("held-out", count, seed)]
        pool = self.entries if self.entries is not None else tuple(Entry(text) for text in passages("held-out"))
        if count > len(pool):
            raise UsageError(f"{count} samples were asked for and the data holds {len(pool)}: ask for fewer")
        return random.Random(f"aqn.experiments:{seed}").sample(list(pool), count)  # noqa: S311 -- reproducible, not secret

    def loss(self, entries: Sequence[Entry]) -> float:
        """Mean cross entropy in nats a token."""
        return text_loss(self.model, self.tokenizer, [entry.text for entry in entries], max_tokens=512)

    @torch.no_grad()
    def accuracy(self, entries: Sequence[Entry]) -> Accuracy:
        """The share of problems whose greedy reply is the answer, or ends in the same number."""
        asked = [entry.problem for entry in entries if entry.problem is not None]
        if len(asked) < len(entries):
            raise UsageError("accuracy needs questions with answers: give data with both, or measure the loss")
        given = replies(self.model, self.tokenizer, asked, max_new_tokens=self.new_tokens)
        right = sum(is_right(problem.answer, reply) for problem, reply in zip(asked, given, strict=True))
        return Accuracy(right, len(asked))

    def _told(self, problem: Problem) -> Entry:
        text: str = self.tokenizer.apply_chat_template(problem.conversation, tokenize=False)
        return Entry(text, problem)


def load_subject(
    backend: TorchBackend,
    model: Path | None = None,
    data: Path | None = None,
    task: Task = "arithmetic",
    dtype: str = "float32",
    require_data: bool = True,
) -> Subject:
    """The model in directory `model` (the bundled one if None) with the data in the file `data` (the bundled `task`'s
    if None, which do not suit another model; `require_data` is false where no data is used).
    """
    loaded = load_model(model or model_dir(), backend, dtype)
    if loaded.tokenizer is None:
        raise UsageError(f"{loaded.directory} has no tokenizer: an experiment on text needs one")
    if require_data and data is None and model is not None:
        raise UsageError("--model needs --data FILE (.jsonl or .parquet): the bundled problems suit the bundled model")
    tokenizer = loaded.tokenizer
    entries = None
    if data is not None:
        entries = tuple(_entry(row, place, data, tokenizer) for place, row in enumerate(read_rows(data), start=1))
    return Subject(
        loaded.directory.name, loaded.model, tokenizer, backend, task, entries, new_tokens=5 if data is None else 256
    )


def _entry(row: Any, place: int, path: Path, tokenizer: Any) -> Entry:
    if not isinstance(row, dict):
        raise UsageError(f"{path} row {place} is a {type(row).__name__}: each row must be an object")
    problem = question_and_answer(row)
    if problem is not None:
        text = f"{problem.question}\n{problem.answer}"
        if getattr(tokenizer, "chat_template", None):
            text = tokenizer.apply_chat_template(problem.conversation, tokenize=False)
        return Entry(text, problem)
    if isinstance(row.get("text"), str):
        return Entry(row["text"])
    names = ", ".join(sorted(row))
    raise UsageError(
        f"{path} row {place} has neither a 'text' nor a question ({'/'.join(QUESTIONS)}) with an answer "
        f"({'/'.join(ANSWERS)}); it has: {names}"
    )
