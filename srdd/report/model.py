"""What a report holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from srdd.diagnose import Diagnosis, Finding, diagnose
from srdd.measurements import Cost, Measurements

SCHEMA = "srdd-report/1"


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
        return Report(
            self.measurements,
            diagnose(self.measurements),
            self.cost,
            self.backend,
            self.model,
            self.level,
            self.environment,
        )

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, complete or not at all."""
        from srdd.report.store import write_report

        write_report(self, Path(path))
