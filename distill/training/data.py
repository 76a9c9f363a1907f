"""What a student is trained and measured on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hal.bundled.arithmetic import Problem, problems
from hal.bundled.text import passages
from hal.errors import UsageError
from hal.ops.loss import IGNORED
from hal.rows import question_and_answer, read_rows
from hal.supervised import Example, collate, example


@dataclass(frozen=True)
class Data:
    """Examples for training and held-out ones, as tokens; and where all of the latter are questions, the `problems`,
    those that are whole.
    """

    train: Sequence[Example]
    held_out: Sequence[Example]
    problems: Sequence[Problem] = ()


def bundled_data(tokenizer: Any, train: int, held_out: int, seed: int) -> Data:
    """Arithmetic problems, of which none that is held out occurs in training."""
    asked = problems("held-out", held_out, seed)
    return Data(
        [example(problem, tokenizer) for problem in problems("train", train, seed)],
        [example(problem, tokenizer) for problem in asked],
        asked,
    )


def text_data(tokenizer: Any, train: int, held_out: int, tokens: int, seed: int) -> Data:
    """Passages of English that ship with CPython, for a model whose task is not known; at most so many of them."""
    shown, asked = (
        [{"text": text} for text in passages(split, None, seed)[:count]]  # type: ignore[arg-type]  # two literals
        for split, count in (("train", train), ("held-out", held_out))
    )
    return Data([_tokens(row, tokenizer, tokens) for row in shown], [_tokens(row, tokenizer, tokens) for row in asked])


def file_data(
    tokenizer: Any, path: Path, held_out: Path | None, train: int, tested: int, tokens: int, seed: int
) -> Data:
    """At most `train` rows of `path` and `tested` of `held_out` (None: others of `path`), drawn by `seed`; each a
    question with an answer, or a "text". Longer ones are cut to `tokens`, texts at their end and questions at their
    beginning, so that the answer stays; what then predicts no token is left out. Raises UsageError for too few rows,
    one that is neither, or where none is left.
    """
    draw = random.Random(f"distill:{seed}")  # noqa: S311 -- reproducible, not secret
    rows, first = _shuffled(path, draw), tested if held_out is None else 0
    if first >= len(rows):
        raise UsageError(
            f"{path} holds {len(rows)} rows, of which {first} are to be held out: none is left to train on"
        )
    shown = _predicting(rows, tokenizer, tokens)
    others = shown if held_out is None else _predicting(_shuffled(held_out, draw), tokenizer, tokens)
    tests, told = list(islice(others, tested)), list(islice(shown, train))
    if tested:
        _require_some(tests, held_out or path, tokens)
    _require_some(told, path, tokens)
    asked = _whole([row for row, _ in tests], tokenizer, tokens)
    return Data([tokenized for _, tokenized in told], [tokenized for _, tokenized in tests], asked)


def batches(
    examples: Sequence[Example], size: int, padding: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """The examples, `size` at a time, filled with the token `padding`, on `device`."""
    for start in range(0, len(examples), size):
        batch = collate(examples[start : start + size], padding)
        yield {name: value.to(device) for name, value in batch.items()}


def padding_token(tokenizer: Any) -> int:
    """The token to fill batches with; any will do, because it is masked."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def _require_some(found: Sequence[Any], file: Path, tokens: int) -> None:
    if not found:
        raise UsageError(
            f"{file} has too few rows with a token to predict within --max-tokens {tokens}: give longer texts, or "
            "answers that are not empty"
        )


def _shuffled(path: Path, draw: random.Random) -> list[dict[str, Any]]:
    rows = read_rows(path)
    wrong = next((place for place, row in enumerate(rows, start=1) if not _usable(row)), None)
    if wrong is not None:
        raise UsageError(f"{path} row {wrong} is neither a question with an answer nor a 'text'")
    draw.shuffle(rows)
    return rows


def _usable(row: Any) -> bool:
    return isinstance(row, dict) and (question_and_answer(row) is not None or isinstance(row.get("text"), str))


def _predicting(
    rows: Sequence[dict[str, Any]], tokenizer: Any, longest: int
) -> Iterator[tuple[dict[str, Any], Example]]:
    """The rows of which a token is predicted, each with its tokens; a first token is not, nothing stands before it."""
    for row in rows:
        tokens = _tokens(row, tokenizer, longest)
        if any(label != IGNORED for label in tokens["labels"][1:]):
            yield row, tokens


def _whole(rows: Sequence[dict[str, Any]], tokenizer: Any, longest: int) -> Sequence[Problem]:
    """The questions among `rows` that are not cut, none where some are texts."""
    found = [problem for row in rows if (problem := question_and_answer(row)) is not None]
    if len(found) < len(rows):
        return ()
    return [problem for problem in found if len(example(problem, tokenizer)["input_ids"]) <= longest]


def _tokens(row: dict[str, Any], tokenizer: Any, longest: int) -> Example:
    problem = question_and_answer(row)
    if problem is not None:
        return {name: values[-longest:] for name, values in example(problem, tokenizer).items()}
    tokens = tokenizer(row["text"])["input_ids"][:longest]
    return {"input_ids": tokens, "labels": tokens}
