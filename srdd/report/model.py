"""What a report holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hal.files import write_text
from srdd.diagnose import Diagnosis, Finding, diagnose
from srdd.measurements import Cost, Measurements
from srdd.report.store import from_document, read_document, to_document, to_text


@dataclass(frozen=True)
class Report:
    """The outcome of one scan: the `measurements`, the `diagnosis` made from them, what it `cost`, and where it
    ran. `model` names the model, `backend` the backend, `environment` holds versions, device and numeric
    switches.
    """

    measurements: Measurements
    diagnosis: Diagnosis
    cost: Cost
    backend: str
    model: str
    level: str
    environment: dict[str, str]

    @property
    def verdict(self) -> str:
        """Either "healthy" or "faulty"."""
        return self.diagnosis.verdict

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The suspected faults, most certain first."""
        return self.diagnosis.findings

    def rediagnosed(self) -> Report:
        """The same measurements judged by the present rules."""
        return replace(self, diagnosis=diagnose(self.measurements))

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, complete or not at all."""
        write_text(Path(path), to_text(to_json(self)))


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values; NaN becomes null, and infinity the largest float."""
    about = {
        "level": report.level,
        "backend": report.backend,
        "model": report.model,
        "environment": report.environment,
    }
    return to_document(report.measurements, report.diagnosis, report.cost, about)


def load_report(path: str | Path) -> Report:
    """Read a report written by `Report.save`; raises UsageError for a missing file, one that is not JSON,
    another schema version or a document that breaks the schema.
    """
    return from_json(read_document(Path(path)))


def from_json(document: dict[str, Any]) -> Report:
    """The report that `to_json` made the document from."""
    about = {name: document[name] for name in ("backend", "model", "level", "environment")}
    return Report(*from_document(document), **about)
