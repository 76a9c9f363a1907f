"""What a backend declares it cannot do: which cases a declaration covers, and which declarations nothing needs."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from conformance.case import Case
from hal.backend import TorchBackend
from hal.ops import CATALOGUE


class Judged(Protocol):
    """A case's name, subject and verdict."""

    @property
    def case(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def verdict(self) -> str: ...


def covers(declaration: str, case: str, subject: str) -> bool:
    """Whether the key of a known failure means the case: the name of an operator means every case about it, anything
    else is a pattern of case names (`sweeps/gelu/bfloat16`, `gradients/layer_norm/*`).
    """
    if declaration in CATALOGUE:
        return subject == declaration
    return fnmatch.fnmatchcase(case, declaration)


def reason_known(known: Mapping[str, str], case: str, subject: str) -> str | None:
    """Why this case is known to fail on a backend with the `known` failures, or None."""
    return next((reason for key, reason in known.items() if covers(key, case, subject)), None)


def reason_unsupported(backend: TorchBackend, case: Case) -> str | None:
    """Why the backend need not run this case, or None: a dtype it does not declare, or an operator it declares
    unsupported.
    """
    if case.dtype is not None and case.dtype not in backend.dtypes:
        return f"backend '{backend.name}' does not declare {str(case.dtype).removeprefix('torch.')}"
    for name in case.operators or (case.subject,):
        if name in backend.unsupported_ops:
            return f"operator {name}: {backend.unsupported_ops[name]}"
    return None


def unmatched(known: Collection[str], cases: Iterable[Case]) -> tuple[str, ...]:
    """Declarations that mean no case at all: misspelt, or of a case that has been renamed."""
    everything = [(case.name, case.subject) for case in cases]
    return tuple(key for key in known if not any(covers(key, *names) for names in everything))


def stale(known: Collection[str], results: Iterable[Judged]) -> tuple[str, ...]:
    """Declarations whose cases ran and did not fail in any: the backend has been mended, or never had it."""
    ran = [result for result in results if result.verdict != "unsupported"]
    unneeded = []
    for key in known:
        verdicts = {result.verdict for result in ran if covers(key, result.case, result.subject)}
        if verdicts and "known" not in verdicts:
            unneeded.append(key)
    return tuple(unneeded)
