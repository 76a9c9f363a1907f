"""The order in which arithmetic is taught: mostly bare equations at first, then questions in chat form alone.

An equation on a line of its own holds the same fact as a question in a third of the tokens, so the facts are learnt
from those first, and reading questions is learnt after.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hal.bundled.arithmetic import ASKED, Problem, stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION_WEIGHT: Final = 0.05  # the reply is the task; the question is read for its grammar
DRILL_PHASE: Final = 0.4  # of all lessons, by tokens
DRILL_SHARE: Final = 0.75  # of the tokens in that phase


@dataclass(frozen=True)
class Lesson:
    """Token ids, each with the weight that predicting it has in the loss."""

    ids: list[int]
    weights: list[float]


def conversation(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> Lesson:
    """The problem and its answer by the chat template."""
    question = tokenizer.apply_chat_template(problem.messages, tokenize=False, add_generation_prompt=True)
    whole: str = tokenizer.apply_chat_template(problem.conversation, tokenize=False)
    return _lesson(question, whole.removeprefix(question), tokenizer)


def equation(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> Lesson:
    """The question and its answer on one line, without the chat form."""
    return _lesson(problem.question, f"{problem.answer}\n", tokenizer)


def lessons(tokenizer: PreTrainedTokenizerBase, seed: int, tokens: int) -> Iterator[Lesson]:
    """Lessons without end, all from the training side of the split; about `tokens` of them are going to be read."""
    questions = stream("train", seed)
    # The form that ends in "=" is a problem like any other, so what is held out of the questions is held out here.
    equations = (p for p in stream("train", seed + 1, tuple(ASKED)) if p.question.endswith("="))
    given = drilled = 0
    while True:
        drill = given < DRILL_PHASE * tokens and drilled <= DRILL_SHARE * given
        lesson = equation(next(equations), tokenizer) if drill else conversation(next(questions), tokenizer)
        given += len(lesson.ids)
        drilled += len(lesson.ids) if drill else 0
        yield lesson


def _lesson(question: str, reply: str, tokenizer: PreTrainedTokenizerBase) -> Lesson:
    asked: list[int] = tokenizer(question, add_special_tokens=False)["input_ids"]
    replied: list[int] = tokenizer(reply, add_special_tokens=False)["input_ids"]
    return Lesson(asked + replied, [QUESTION_WEIGHT] * len(asked) + [1.0] * len(replied))
