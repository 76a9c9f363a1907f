"""The tasks by which a fix is judged: arithmetic, questions with answers, plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Protocol

from hal.bundled.arithmetic import problems
from hal.bundled.evaluate import replies
from hal.errors import UsageError
from hal.evaluation import as_prompt, completions, text_losses
from srdd.prompts import DEFAULT, read_prompts
from srdd.verify_fix.paired import Comparison, compare_losses, compare_shares

_SEED = 0  # of the arithmetic problems: the same ones each time
_QUESTION = ("prompt", "question")


class Task(Protocol):
    """Something a model can be good or bad at, example by example."""

    def run(self, model: Any, tokenizer: Any) -> Sequence[float]:
        """One number an example: 1 or 0 for right or wrong, or a loss."""

    def compare(self, before: Sequence[float], after: Sequence[float]) -> Comparison:
        """Whether two runs of this task differ."""


@dataclass(frozen=True)
class ArithmeticTask:
    """The bundled model's own: held-out problems, right when the greedy reply is exactly the answer."""

    examples: int

    def run(self, model: Any, tokenizer: Any) -> Sequence[float]:
        asked = problems("held-out", self.examples, _SEED)
        given = replies(model, tokenizer, asked)
        return [float(reply == problem.answer) for problem, reply in zip(asked, given, strict=True)]

    def compare(self, before: Sequence[float], after: Sequence[float]) -> Comparison:
        return compare_shares("arithmetic accuracy", [bool(x) for x in before], [bool(x) for x in after])


@dataclass(frozen=True)
class AnswerTask:
    """Questions with answers; the greedy reply is right when `matches` says so."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    max_new_tokens: int
    batch_size: int

    def run(self, model: Any, tokenizer: Any) -> Sequence[float]:
        prompts = [as_prompt(tokenizer, question) for question in self.questions]
        given = completions(
            model,
            tokenizer,
            prompts,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            add_special_tokens=not getattr(tokenizer, "chat_template", None),  # which brings its own
        )
        return [float(matches(reply, answer)) for reply, answer in zip(given, self.answers, strict=True)]

    def compare(self, before: Sequence[float], after: Sequence[float]) -> Comparison:
        return compare_shares("accuracy", [bool(x) for x in before], [bool(x) for x in after])


@dataclass(frozen=True)
class TextTask:
    """Plain texts: the mean loss of each."""

    texts: tuple[str, ...]
    batch_size: int

    def run(self, model: Any, tokenizer: Any) -> Sequence[float]:
        losses = text_losses(model, tokenizer, self.texts, batch_size=self.batch_size, add_special_tokens=True)
        if not any(loss.tokens for loss in losses):
            raise UsageError("the texts hold no token to predict: give at least one text of two tokens or more")
        return [loss.mean for loss in losses if loss.tokens]

    def compare(self, before: Sequence[float], after: Sequence[float]) -> Comparison:
        return compare_losses(before, after)


def matches(reply: str, answer: str) -> bool:
    """Whether `reply` gives `answer`. An answer that ends in a number, behind "####" or as all there is, is given by a
    reply whose last number equals it, as GSM8K is scored; any other by the same text, space and case aside.
    """
    wanted = _number(answer.rpartition("####")[2])
    if wanted is not None:
        numbers = re.findall(r"-?[\d,]*\.?\d+", reply)
        return bool(numbers) and _number(numbers[-1]) == wanted
    return " ".join(reply.split()).casefold() == " ".join(answer.split()).casefold()


def read_task(path: Path | None, examples: int, max_new_tokens: int, batch_size: int) -> AnswerTask | TextTask:
    """The task in the file `path`, its first `examples` lines: .jsonl with a "prompt" or "question" and an "answer" in
    each line, or the texts of a prompts file, for their loss; the scan's own texts when `path` is None. Raises
    UsageError for what cannot be read or is neither throughout.
    """
    if path is None:
        return TextTask(DEFAULT, batch_size)
    texts = tuple(read_prompts(path)[:examples])
    if path.suffix != ".jsonl":
        return TextTask(texts, batch_size)
    lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()][:examples]
    entries = [json.loads(line) for line in lines]
    with_answer = ["answer" in entry for entry in entries]
    if not any(with_answer):
        return TextTask(texts, batch_size)
    if not all(with_answer):
        odd = with_answer.index(not with_answer[0]) + 1
        raise UsageError(f"{path}: entry {odd} differs from the first in having an 'answer': give it in all or in none")
    answers = tuple(_answer(entry, number, path) for number, entry in enumerate(entries, start=1))
    return AnswerTask(texts, answers, max_new_tokens, batch_size)


def _answer(entry: dict[str, Any], number: int, path: Path) -> str:
    answer = entry["answer"]
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)) or not str(answer).strip():
        raise UsageError(f"{path}: the 'answer' of entry {number} is {answer!r}: give a text or a number")
    if not any(isinstance(entry.get(key), str) for key in _QUESTION):
        raise UsageError(f"{path}: entry {number} has an 'answer' but no 'prompt' or 'question'")
    return str(answer)


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.strip().replace(",", "").removeprefix("$"))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
