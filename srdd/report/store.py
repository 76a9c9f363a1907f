"""The contents of a report as a JSON document, checked against the schema that ships with the package."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from hal.errors import UsageError
from srdd.diagnose import Diagnosis, Finding
from srdd.evidence import Evidence
from srdd.measurements import (
    CacheIntegrity,
    Checksum,
    Cost,
    Gain,
    LayerMeasurement,
    Measurements,
    PassThrough,
    Shape,
    SiteReplay,
    Stability,
    Subnormals,
    Transfer,
    WeightDamage,
    WrongConstant,
)

SCHEMA = "srdd-report/1"

_PROBES = ("stability", "gain", "shape", "pass_through", "kv_cache", "checksum", "subnormals")


def to_document(
    measurements: Measurements, diagnosis: Diagnosis, cost: Cost, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The contents of a report as plain JSON values; NaN becomes null, and infinity the largest float. `about` holds
    the document's own keys: level, backend, model, environment.
    """
    document = {
        "schema": SCHEMA,
        "verdict": diagnosis.verdict,
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "layers": [
            _layer_row(layer, diagnosis.labels[row], diagnosis.scores[row])
            for row, layer in enumerate(measurements.layers)
        ],
        "outside": [{"layer": row.index, **_comparisons(row)} for row in measurements.outside],
        "notes": list(diagnosis.notes),
        "probes": list(measurements.probes),
        "input": {
            "tokens": measurements.tokens,
            "hidden": measurements.hidden,
            "dtype": measurements.dtype,
            "unit_roundoff": measurements.unit_roundoff,
            "notes": list(measurements.notes),
            "known": dict(measurements.known),
        },
        "cost": asdict(cost),
        **about,
    }
    plain: dict[str, Any] = _plain(document)
    return plain


def from_document(document: dict[str, Any]) -> tuple[Measurements, Diagnosis, Cost]:
    """What `to_document` was given, from a document that follows the schema."""
    about = document["input"]
    measurements = Measurements(
        layers=tuple(_layer_from(row) for row in document["layers"]),
        unit_roundoff=about["unit_roundoff"],
        dtype=about["dtype"],
        tokens=about["tokens"],
        hidden=about["hidden"],
        probes=tuple(document["probes"]),
        notes=tuple(about["notes"]),
        known=tuple(about["known"].items()),
        outside=tuple(
            LayerMeasurement.outside(row["layer"], **_comparisons_from(row))
            for row in document.get("outside", ())  # a report of before these were replayed has none
        ),
    )
    diagnosis = Diagnosis(
        findings=tuple(_finding_from(entry) for entry in document["findings"]),
        labels=tuple(row["diagnosis"] for row in document["layers"]),
        scores=tuple(row["score"] for row in document["layers"]),
        notes=tuple(document["notes"]),
    )
    return measurements, diagnosis, Cost(**document["cost"])


def to_text(document: dict[str, Any]) -> str:
    """The document as indented JSON; raises ValidationError when it breaks the schema."""
    jsonschema.validate(document, _schema())
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read_document(path: Path) -> dict[str, Any]:
    """The document in the file `path`; raises UsageError for a missing file, one that is not JSON, another schema
    version or a document that breaks the schema.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read report {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}): give a file written by `python -m srdd --json`") from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise UsageError(
            f"{path} has schema {found!r}, this version reads {SCHEMA!r}: scan again, or use the version that wrote it"
        )
    try:
        jsonschema.validate(document, _schema())
    except jsonschema.ValidationError as error:
        raise UsageError(f"{path} breaks schema {SCHEMA} at {error.json_path}: {error.message[:200]}") from error
    read: dict[str, Any] = document
    return read


@cache
def _schema() -> dict[str, Any]:
    text = resources.files("srdd.report").joinpath("schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _layer_row(layer: LayerMeasurement, label: str, score: float) -> dict[str, Any]:
    """The documents' columns first, then everything measured, nested by probe."""
    gain, shape = layer.gain, layer.shape
    return {
        "index": layer.index,
        "site": layer.site,
        "diagnosis": label,
        "score": score,
        "instability": layer.stability.spread if layer.stability else None,
        "gain": gain.gain if gain else None,
        "min_gain": gain.lowest if gain else None,
        "max_gain": gain.highest if gain else None,
        "discrete_count": gain.discrete if gain else None,
        "kurtosis": shape.kurtosis if shape else None,
        "pile_up": shape.pile_up if shape else None,
        "replay_error": max((site.transfer.violation for site in layer.replay), default=0.0) if layer.replay else None,
        "finite_input": layer.finite_input,
        "finite_output": layer.finite_output,
        "measured": {name: _optional(getattr(layer, name)) for name in _PROBES},
        **_comparisons(layer),
    }


def _comparisons(row: LayerMeasurement) -> dict[str, Any]:
    return {
        "replay": None if row.replay is None else [asdict(site) for site in row.replay],
        "weights": None if row.weights is None else [asdict(damage) for damage in row.weights],
    }


def _optional(probe: Any) -> dict[str, Any] | None:
    return None if probe is None else asdict(probe)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else math.copysign(1.7976931348623157e308, value)
    return value


def _layer_from(row: dict[str, Any]) -> LayerMeasurement:
    measured = {name: _with_nan(values, {"glitch"}) if values else None for name, values in row["measured"].items()}
    stability, gain, shape = measured["stability"], measured["gain"], measured["shape"]
    return LayerMeasurement(
        index=row["index"],
        site=row["site"],
        finite_input=row["finite_input"],
        finite_output=row["finite_output"],
        stability=_stability_from(stability),
        gain=Gain(**gain) if gain else None,
        shape=Shape(**shape) if shape else None,
        pass_through=_with_transfer(PassThrough, measured["pass_through"]),
        kv_cache=_with_transfer(CacheIntegrity, measured["kv_cache"]),
        checksum=Checksum(**measured["checksum"]) if measured["checksum"] else None,
        subnormals=Subnormals(**asked) if (asked := measured.get("subnormals")) else None,  # older reports: not asked
        **_comparisons_from(row),
    )


def _comparisons_from(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "replay": None if row["replay"] is None else tuple(_site_from(site) for site in row["replay"]),
        "weights": None if row["weights"] is None else tuple(_weight_from(entry) for entry in row["weights"]),
    }


def _stability_from(values: dict[str, Any] | None) -> Stability | None:
    if values is None:
        return None
    glitch = values["glitch"]
    return Stability(**{**values, "glitch": None if glitch is None else Transfer(**_with_nan(glitch))})


def _site_from(values: dict[str, Any]) -> SiteReplay:
    others = tuple(Transfer(**_with_nan(entry)) for entry in values["others"])
    constant = values.get("constant")
    site: SiteReplay = _with_transfer(SiteReplay, {**values, "others": others})
    return replace(
        site, constant=None if constant is None else WrongConstant(**constant), repeats=values.get("repeats")
    )


def _weight_from(entry: dict[str, Any]) -> WeightDamage:
    return WeightDamage(**{**_with_nan(entry), "index": tuple(entry["index"])})


def _with_transfer(kind: Any, values: dict[str, Any] | None) -> Any:
    if values is None:
        return None
    return kind(**{**_with_nan(values), "transfer": Transfer(**_with_nan(values["transfer"]))})


def _with_nan(values: dict[str, Any], optional: Collection[str] = ()) -> dict[str, Any]:
    return {key: math.nan if value is None and key not in optional else value for key, value in values.items()}


def _finding_from(entry: dict[str, Any]) -> Finding:
    evidence = tuple(Evidence(**_with_nan(item)) for item in entry["evidence"])
    return Finding(**{**entry, "evidence": evidence})
