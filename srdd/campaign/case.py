"""One scan of a campaign, and the name by which its outcome is found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srdd.campaign.entry import entry_of
from srdd.faults import Fault
from srdd.trials import TRIALS


@dataclass(frozen=True)
class Case:
    """A scan to make: the model in `dtype`, at `level`, on `prompts`, with `fault` put in; a clean control has
    none. `trials` is the number of runs of each layer on its own input.
    """

    dtype: str
    level: str
    prompts: tuple[str, ...]
    fault: Fault | None = None
    trials: int = TRIALS

    def content(self) -> dict[str, Any]:
        """The case as a JSON object."""
        return {
            "dtype": self.dtype,
            "level": self.level,
            "prompts": list(self.prompts),
            "fault": entry_of(self.fault) if self.fault else None,
            "trials": self.trials,
        }

    def key(self, provenance: Mapping[str, str]) -> str:
        """A hash of the case and of all that decides its outcome: model, code and library versions."""
        return content_hash({"case": self.content(), "provenance": dict(provenance)})


def content_hash(document: Any) -> str:
    """128 bits of SHA-256 over a JSON document in canonical form, as hexadecimal digits."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
