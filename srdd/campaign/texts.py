"""Prompts for a campaign: as many different sets as it has cases, each drawn by its own number."""

from __future__ import annotations

from collections.abc import Sequence

from hal.noise import stream_key, uniform

LINES = 16

_THINGS = ("trains", "loaves", "letters", "sensors", "windows", "maps", "songs", "bridges", "lamps", "seeds")
_PLACES = ("harbour", "station", "library", "valley", "market", "workshop", "garden", "river")
_FORMS = (
    "There are {a} {x} and {b} {y}. How many are there in all?",
    "{a} + {b} = {c}, {b} + {a} = {c}, {c} - {a} = {b}.",
    "Of {c} {x}, {a} were {y} before; the other {b} were found near the {p}.",
    "def {x}({y}):\n    return {y} * {a} + {b}",
    "The {x} of {a} towns sent {b} {y} to the {p}, and nobody knew why until the spring of 19{b}.",
    "Question: the {p} keeps {a} boxes with {b} {x} each. How many {x} is that?",
    '{{"{x}": {a}, "{y}": {b}, "place": "{p}"}}',
    "She walked from the {p} with {a} {x}, counted them twice, and gave {b} {y} back.",
)


def draw_prompts(pool: Sequence[str] | None, seed: int, number: int, lines: int = LINES) -> tuple[str, ...]:
    """The prompt set `number` of a campaign with that `seed`: `lines` lines drawn from `pool` without repetition
    (as far as it has so many), or built-in sentences with words and numbers drawn.
    """
    stream = stream_key("srdd.campaign.prompts", number)
    if pool is not None:
        order = uniform((len(pool),), seed=seed, stream=stream).argsort(stable=True)
        return tuple(pool[index] for index in order[:lines].tolist())
    return tuple(_sentence(draws) for draws in uniform((lines, 6), seed=seed, stream=stream).tolist())


def _sentence(draws: list[float]) -> str:
    form, thing, other, place = (
        words[int(draw * len(words))]
        for words, draw in zip((_FORMS, _THINGS, _THINGS, _PLACES), draws[:4], strict=True)
    )
    a, b = (10 + int(draw * 90) for draw in draws[4:])
    return form.format(x=thing, y=other, p=place, a=a, b=b, c=a + b)
