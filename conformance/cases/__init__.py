"""All cases, by family, and how to choose among them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from conformance.case import Case
from conformance.cases import (
    deadzone,
    differences,
    gradients,
    hooks,
    model,
    noise,
    operators,
    quantisation,
    scan,
    sweeps,
)
from hal.errors import UsageError

FAMILIES: tuple[Callable[[], Iterator[Case]], ...] = (
    operators.cases,
    gradients.cases,
    sweeps.cases,
    deadzone.cases,
    quantisation.cases,
    noise.cases,
    hooks.cases,
    model.cases,
    differences.cases,
    scan.cases,
)


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case there is, in the order in which they are run."""
    return tuple(case for family in FAMILIES for case in family())


def choose(quick: bool, patterns: Sequence[str] = ()) -> list[Case]:
    """The cases of the quick run or of the full one, or those whose names match one of `patterns` (as in a shell); a
    pattern that matches nothing is a UsageError.
    """
    if not patterns:
        return [case for case in all_cases() if case.quick or not quick]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(case.name, pattern) for case in all_cases()):
            families = ", ".join(sorted({case.family for case in all_cases()}))
            raise UsageError(
                f"no case is named '{pattern}': names look like operators/silu/bfloat16/odd/normal, "
                f"families are {families}; `python -m conformance list` prints all"
            )
    return [case for case in all_cases() if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)]
