"""What one rank of a fleet reports: bitwise digests of all it computed, or why it could not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

WEIGHTS = "weights"
FORWARD = "forward"


@dataclass(frozen=True)
class Record:
    """The digest of one thing: at `stage` weights a parameter, at stage forward what a module returned in the model's
    own pass, at any other stage what it returned when its layer was given that stage's input, which is the same on
    every rank whatever the layers before it did. `layer` is None outside the layers.
    """

    stage: str
    layer: int | None
    site: str
    digest: str


@dataclass(frozen=True)
class Answer:
    """One rank's: on which `host`, `device` and `environment` it ran, its `records` in the order of computation, the
    places (indices of records) that differed when it repeated itself, and `error`, with the exit code it asks for, when
    it failed.
    """

    rank: int
    host: str
    device: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    unstable: tuple[int, ...] = ()
    error: str = ""
    exit_code: int = 0

    @property
    def where(self) -> str:
        """The rank with its place, for people."""
        return f"rank {self.rank} ({', '.join(part for part in (self.host, self.device) if part)})"


def to_text(answer: Answer) -> str:
    """The answer as it travels."""
    rows = [[record.stage, record.layer, record.site, record.digest] for record in answer.records]
    return json.dumps({**asdict(answer), "records": rows})


def from_text(text: str) -> Answer:
    """The answer that `to_text` was given."""
    values: dict[str, Any] = json.loads(text)
    records = tuple(Record(*row) for row in values.pop("records"))
    return Answer(**{**values, "records": records, "unstable": tuple(values["unstable"])})
