"""What a run found, and its file: JSON with a versioned schema that ships with the package."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jsonschema

from conformance.rows import Errors, Row
from hal.errors import UsageError
from hal.files import write_text

SCHEMA = "conformance-results/1"

Verdict = Literal["pass", "fail", "known", "unsupported"]


@dataclass(frozen=True)
class CaseResult:
    """One case on one backend. `verdict` is by the derived bound: `known` is a failure that the backend declares,
    `unsupported` was not run; `message` says what differs, or why it was not run. `rows` are the figures, one
    for each tensor and seed; `agreement` and `facts` as in `conformance.evidence.Evidence`.
    """

    case: str
    subject: str
    dtype: str
    verdict: Verdict
    message: str = ""
    rows: tuple[Row, ...] = ()
    agreement: tuple[tuple[str, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    inputs: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def family(self) -> str:
        """The first part of the case's name."""
        return self.case.partition("/")[0]


@dataclass(frozen=True)
class Results:
    """A whole run: the backend and its environment, how it was run, a result for each case, and the `known`
    failures that the backend declares with their reasons: those that nothing needed are `stale`, those that name no
    case `unmatched`.
    """

    backend: str
    environment: dict[str, str]
    selection: str
    seeds: int
    cases: tuple[CaseResult, ...]
    known: tuple[tuple[str, str], ...] = ()
    stale: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """`fail` if any case failed that the backend does not declare."""
        return "fail" if self.count("fail") else "pass"

    def count(self, verdict: str) -> int:
        """How many cases have that verdict."""
        return sum(case.verdict == verdict for case in self.cases)

    def save(self, path: str | Path) -> None:
        """Write the file atomically; raises UsageError when it cannot be written."""
        document = to_json(self)
        jsonschema.validate(document, schema())
        write_text(Path(path), json.dumps(document, indent=1, allow_nan=False) + "\n")


def to_json(results: Results) -> dict[str, Any]:
    """The results as plain JSON values; infinity is written as the largest float, NaN never occurs."""
    return {
        "schema": SCHEMA,
        "backend": results.backend,
        "verdict": results.verdict,
        "environment": results.environment,
        "selection": results.selection,
        "seeds": results.seeds,
        "declarations": {
            "known": dict(results.known),
            "stale": list(results.stale),
            "unmatched": list(results.unmatched),
        },
        "counts": {name: results.count(name) for name in ("pass", "fail", "known", "unsupported")},
        "cases": [case_to_json(case) for case in results.cases],
    }


def case_to_json(case: CaseResult) -> dict[str, Any]:
    """One case as plain JSON values; figures that are zero are left out of its rows."""
    entry = dataclasses.asdict(case)
    entry["rows"] = [_plain_row(row) for row in case.rows]
    entry["agreement"], entry["facts"] = dict(case.agreement), dict(case.facts)
    entry["inputs"] = list(case.inputs)
    return entry


def case_from_json(entry: dict[str, Any]) -> CaseResult:
    """The inverse of `case_to_json`."""
    return CaseResult(
        **{
            **entry,
            "rows": tuple(_row_from(row) for row in entry["rows"]),
            "agreement": tuple(entry["agreement"].items()),
            "facts": tuple(entry["facts"].items()),
            "inputs": tuple(entry["inputs"]),
        }
    )


def load_results(path: str | Path) -> Results:
    """Read a file written by `Results.save`; raises UsageError for one that is missing, not JSON, of another schema
    version, or that breaks the schema.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read results {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f"{path} is not JSON ({error}): give a file written by `python -m conformance run --json`"
        ) from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise UsageError(
            f"{path} has schema {found!r}, this version reads {SCHEMA!r}: run again, or use the version that wrote it"
        )
    try:
        jsonschema.validate(document, schema())
    except jsonschema.ValidationError as error:
        raise UsageError(f"{path} breaks schema {SCHEMA} at {error.json_path}: {error.message[:200]}") from error
    return Results(
        backend=document["backend"],
        environment=document["environment"],
        selection=document["selection"],
        seeds=document["seeds"],
        cases=tuple(case_from_json(entry) for entry in document["cases"]),
        known=tuple(document["declarations"]["known"].items()),
        stale=tuple(document["declarations"]["stale"]),
        unmatched=tuple(document["declarations"]["unmatched"]),
    )


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of the file."""
    text = resources.files("conformance").joinpath("schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


_DEFAULTS = {entry.name: entry.default for entry in dataclasses.fields(Row)}


def _plain_row(row: Row) -> dict[str, Any]:
    figures = {name: getattr(row, name) for name in _DEFAULTS if getattr(row, name) != _DEFAULTS[name]}
    return {name: _plain(value) for name, value in figures.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Errors):
        return {name: _plain(entry) for name, entry in dataclasses.asdict(value).items()}
    if isinstance(value, float):
        return 1.7976931348623157e308 if value == math.inf else float(f"{value:.9g}")
    return value


def _row_from(entry: dict[str, Any]) -> Row:
    errors: dict[str, Any] = {name: Errors(**entry[name]) for name in ("errors", "ideal") if name in entry}
    figures: dict[str, Any] = {**entry, **errors}
    return Row(**figures)
