"""The wording of the word problems: templates, names and things; the numbers come from `hal.bundled.exercises`."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

NAMES: Final = ("Anna", "Ben", "Clara", "David", "Ella", "Felix", "Greta", "Hugo", "Ida", "Jon", "Lena", "Max")
THINGS: Final = ("apples", "books", "cards", "coins", "eggs", "nuts", "pens", "shells", "stamps", "stones")
HOLDERS: Final = ("bags", "boxes", "jars", "rows")


@dataclass(frozen=True)
class Template:
    """A story that tells an exercise of one shape, with places for its numbers, for names and for things."""

    shape: str
    text: str

    def tell(self, rng: random.Random, numbers: tuple[int, ...]) -> str:
        """Fill the places: the numbers in order, names and things at random, the two names never the same."""
        who, other = rng.sample(NAMES, 2)
        places = dict(zip("abc", numbers, strict=False))  # a story of one step has no c
        return self.text.format(**places, who=who, other=other, things=rng.choice(THINGS), holders=rng.choice(HOLDERS))


ONE_STEP: Final = (
    Template("+", "{who} has {a} {things} and finds {b} more. How many {things} does {who} have now?"),
    Template("+", "{who} has {a} {things}. {other} has {b} {things}. How many {things} do they have together?"),
    Template("+", "There are {a} {things} on the table. {who} adds {b}. How many {things} are there now?"),
    Template("-", "{who} has {a} {things} and gives {b} to {other}. How many {things} are left?"),
    Template("-", "{who} has {a} {things}. {other} has {b} {things}. How many more does {who} have?"),
    Template("-", "There are {a} {things} on the table. {who} takes {b}. How many {things} are left?"),
    Template("*", "There are {a} {holders} with {b} {things} each. How many {things} are there?"),
    Template("*", "{who} buys {a} {holders} with {b} {things} each. How many {things} does {who} have?"),
)

TWO_STEPS: Final = (
    Template("+-", "{who} has {a} {things}, finds {b} more and loses {c}. How many {things} are left?"),
    Template("+-", "{who} has {a} {things}. {other} has {b} {things}. They sell {c}. How many {things} are left?"),
    Template("*+", "{who} has {a} {holders} with {b} {things} each and finds {c} more. How many {things} is that?"),
    Template("*-", "{who} has {a} {holders} with {b} {things} each and loses {c}. How many {things} are left?"),
)
