"""One answer from what several processes say of their noise."""

from __future__ import annotations

from collections import Counter
from typing import Any

from aqn.hits import Hit
from hal.errors import EngineError


def merge_counts(states: list[dict[str, Any]]) -> Counter[Hit]:
    """One count from those of the processes that share one model: tensor-parallel ones must agree, pipeline stages
    complement each other. EngineError where two that hold one layer disagree, for then they computed different models.
    """
    found: Counter[Hit] = Counter()
    for state in states:
        for phase, layer, operator, count in state["hits"]:
            hit = Hit(phase, layer, operator)
            if found.get(hit, count) != count:
                raise EngineError(f"two processes disturbed layer {layer} {found[hit]} and {count} times: restart them")
            found[hit] = count
    return found


def survival(states: list[dict[str, Any]]) -> float:
    """The share of values in the dead zone that noise carried through it, over all processes; NaN without any."""
    dead = sum(state["deadzone"]["would_be_dead"] for state in states)
    return sum(state["deadzone"]["survived"] for state in states) / dead if dead else float("nan")


def agreed(states: list[dict[str, Any]], key: str) -> Any:
    """What every process says under `key`; EngineError when they differ."""
    values = [state[key] for state in states]
    if any(value != values[0] for value in values):
        raise EngineError(f"the processes disagree on {key}: {', '.join(map(str, values))}; restart the run")
    return values[0]
