"""Arithmetic problems with short answers, made from a seed and split so that held-out ones never occur in training.

The split is a property of the problem, not of the list it is drawn from: a hash of its numbers decides. No seed,
count or order can therefore move a held-out problem into training. `42+7`, `7+42` and every story that adds 42 and 7
fall on the same side. Only lone products are told apart by their wording too, because a times table is learnt by
heart and cannot be worked out from its other cells.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from hal.bundled import exercises, stories
from hal.errors import UsageError

Split: TypeAlias = Literal["train", "held-out"]
SPLITS: Final = ("train", "held-out")

# Questions asked outright; what each asks for is drawn from one of its shapes.
ASKED: Final = {
    "addition": ("+",),
    "subtraction": ("-",),
    "multiplication": ("*",),
    "two-steps": ("+-", "*+", "*-"),
}
TOLD: Final = {"story": stories.ONE_STEP, "long-story": stories.TWO_STEPS}
KINDS: Final = (*ASKED, *TOLD)

_HELD_OUT_SHARE: Final = 10  # one problem in this many
_PATIENCE: Final = 2000  # draws in a row that bring nothing new, after which a side counts as exhausted
_LONE_PRODUCT: Final = re.compile(r"\d+\*\d+")
_COMMUTING: Final = re.compile(r"^(\d+)([+*])(\d+)")
_FORMS: Final = ("{}=", "What is {}?", "Compute {}.")


@dataclass(frozen=True)
class Problem:
    """One question of a kind in `KINDS` with its exact answer; `expression` is what it asks for, such as `7*8-5`."""

    kind: str
    question: str
    answer: str
    expression: str

    @property
    def key(self) -> str:
        """What decides the split: the numbers, 7+42 and 42+7 being the same, or the wording of a lone product."""
        if _LONE_PRODUCT.fullmatch(self.expression):
            return self.question
        return _COMMUTING.sub(lambda found: _ordered(*found.groups()), self.expression)

    @property
    def split(self) -> Split:
        """The side of the split this problem is always on."""
        digest = hashlib.blake2b(self.key.encode(), digest_size=4).digest()
        return "held-out" if int.from_bytes(digest, "big") % _HELD_OUT_SHARE == 0 else "train"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question in chat form, without the reply: what a chat template takes."""
        return [{"role": "user", "content": self.question}]

    @property
    def conversation(self) -> list[dict[str, str]]:
        """Question and reply in chat form: what a model is trained on."""
        return [*self.messages, {"role": "assistant", "content": self.answer}]


def problems(split: Split, count: int, seed: int, kinds: Sequence[str] = KINDS) -> list[Problem]:
    """Draw `count` different problems from one side of the split; the same arguments always give the same list."""
    if count < 0:
        raise UsageError(f"count {count} is negative: ask for 0 or more problems")
    drawn: dict[str, Problem] = {}
    source = stream(split, seed, kinds)
    repeated = 0
    while len(drawn) < count and repeated < _PATIENCE:
        problem = next(source)
        repeated = repeated + 1 if problem.question in drawn else 0
        drawn.setdefault(problem.question, problem)
    if len(drawn) < count:
        raise UsageError(
            f"count {count} is too large: only {len(drawn)} {split} problems of kind {', '.join(kinds)} were found; "
            "ask for fewer or for more kinds"
        )
    return list(drawn.values())


def stream(split: Split, seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Problem]:
    """Draw problems from one side of the split without end, repetitions included; for training."""
    if split not in SPLITS:
        raise UsageError(f"split '{split}' is unknown: use one of {', '.join(SPLITS)}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UsageError(f"kinds {list(kinds)} must name one or more of {', '.join(KINDS)}")
    rng = random.Random(f"arithmetic:{seed}")  # noqa: S311 -- reproducible, not secret
    return _matching(split, rng, tuple(kinds))


def _matching(split: Split, rng: random.Random, kinds: tuple[str, ...]) -> Iterator[Problem]:
    while True:
        problem = _draw(rng.choice(kinds), rng)
        if problem.split == split:
            yield problem


def _draw(kind: str, rng: random.Random) -> Problem:
    if kind in ASKED:
        exercise = exercises.draw(rng.choice(ASKED[kind]), rng)
        question = rng.choice(_FORMS).format(exercise.expression)
    else:
        template = rng.choice(TOLD[kind])
        exercise = exercises.draw(template.shape, rng)
        question = template.tell(rng, exercise.numbers)
    return Problem(kind, question, str(exercise.value), exercise.expression)


def _ordered(left: str, operator: str, right: str) -> str:
    low, high = sorted((int(left), int(right)))
    return f"{low}{operator}{high}"
