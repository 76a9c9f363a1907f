"""What one scan of a campaign gave, as plain data: the only thing that scoring reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from srdd.site_names import lies_in

SCHEMA = "srdd-campaign-case/1"


@dataclass(frozen=True)
class Found:
    """One finding of a report, in its order."""

    layer: int
    site: str
    operator: str
    kind: str
    label: str
    confidence: float


@dataclass(frozen=True)
class Outcome:
    """One case, by its `key`: the `case` as JSON, the full name of the module that its fault sat in (`place`, ""
    for a clean control), how often the fault acted (`calls`) and how many elements it `changed`, and what the scan
    found. `impossible` is "" or why there can be no such fault (a tenth of four units is none), and `error` "" or why
    there was no scan; then the rest is empty.
    """

    key: str
    case: Mapping[str, Any]
    place: str = ""
    calls: int = 0
    changed: int = 0
    findings: tuple[Found, ...] = ()
    forward_equivalents: float = 0.0
    wall_s: float = 0.0
    error: str = ""
    impossible: str = ""

    @property
    def fault(self) -> Mapping[str, Any] | None:
        """The fault put in, None for a clean control."""
        entry: Mapping[str, Any] | None = self.case["fault"]
        return entry

    @property
    def right_place(self) -> int | str | None:
        """What a finding must name: the layer of the fault, or for one outside the layers its module."""
        if self.fault is None:
            return None
        layer: int | None = self.fault["layer"]
        return self.place if layer is None else layer

    @property
    def rightly_placed(self) -> bool:
        """Whether the first finding names that."""
        return bool(self.findings) and self.place_of(self.findings[0]) == self.right_place

    def place_of(self, found: Found) -> int | str:
        """What a finding names, in the same terms; what lies in the right module is that module."""
        if not isinstance(self.right_place, str):
            return found.layer
        return self.place if lies_in(found.site, self.place) else found.site

    def to_json(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return {"schema": SCHEMA, **asdict(self)}


def outcome_from(row: Mapping[str, Any]) -> Outcome:
    """The outcome that `to_json` wrote; raises ValueError, KeyError or TypeError for anything else."""
    values = dict(row)
    if values.pop("schema") != SCHEMA:
        raise ValueError(f"schema is not {SCHEMA}")
    if "fault" not in values["case"]:
        raise ValueError("the case has no fault entry")
    return Outcome(**{**values, "findings": tuple(Found(**entry) for entry in values["findings"])})
