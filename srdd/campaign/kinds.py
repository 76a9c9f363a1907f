"""Which reported kinds are right for which injected kind: the one place where two names may mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Equivalence:
    """A fault of kind `injected`, with options equal to `where`, may also be reported as `reported`, `because`."""

    injected: str
    reported: str
    because: str
    where: Mapping[str, Any]


EQUIVALENCES: tuple[Equivalence, ...] = ()


def accepted_kinds(fault: Mapping[str, Any]) -> frozenset[str]:
    """The kinds that are right for an injected fault: its own, and what EQUIVALENCES adds."""
    added = {
        entry.reported
        for entry in EQUIVALENCES
        if entry.injected == fault["kind"] and all(fault.get(key) == value for key, value in entry.where.items())
    }
    return frozenset({str(fault["kind"]), *added})
