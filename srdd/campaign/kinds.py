"""Which reported kinds are right for which injected kind: the one place where two names may mean the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FaultEntry = Mapping[str, Any]

ANY = "any kind"


@dataclass(frozen=True)
class Equivalence:
    """A fault of kind `injected`, `when` that holds of it (`applies` says so of its entry), may be reported as one of
    `reported`, `because` that is what there is to be seen.
    """

    injected: str
    when: str
    reported: tuple[str, ...]
    because: str
    applies: Callable[[FaultEntry], bool]

    def to_json(self) -> dict[str, Any]:
        """The rule in words."""
        return {
            "injected": self.injected,
            "when": self.when,
            "reported": list(self.reported),
            "because": self.because,
        }


EQUIVALENCES = (
    Equivalence(
        injected=ANY,
        when="every > 1 or rate < 1",
        reported=("noise", "spike", "non_determinism"),
        because="a fault that comes and goes makes runs on the same input differ, which is what these kinds are",
        applies=lambda fault: fault["every"] > 1 or fault["rate"] < 1,
    ),
    Equivalence(
        injected="bit_flip",
        when="bits = sign",
        reported=("sign_flip",),
        because="turning over the sign bit of a unit turns over its sign",
        applies=lambda fault: fault["bits"] == "sign",
    ),
    Equivalence(
        injected=ANY,
        when="in a parameter, and no bit_flip",
        reported=("weight_damage", "bit_flip"),
        because="a weight says how many of its bits are wrong, not how they became so",
        applies=lambda fault: bool(fault["parameter"]) and fault["kind"] != "bit_flip",
    ),
)


def accepted_kinds(fault: FaultEntry) -> frozenset[str]:
    """The kinds that are right for an injected fault: its own, and what EQUIVALENCES adds."""
    added = [
        kind
        for entry in EQUIVALENCES
        if entry.injected in (ANY, fault["kind"]) and entry.applies(fault)
        for kind in entry.reported
    ]
    return frozenset({str(fault["kind"]), *added})
