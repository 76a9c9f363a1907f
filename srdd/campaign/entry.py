"""One fault as a campaign file writes it: a JSON object with the fields of `srdd.faults.Fault`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from hal.errors import UsageError
from srdd.faults import Fault

FIELDS = tuple(field.name for field in fields(Fault))
DEFAULTS = {field.name: field.default for field in fields(Fault)}


def fault_from(entry: Mapping[str, Any], where: str) -> Fault:
    """The fault that `entry` describes. Raises UsageError, beginning with `where`, for a key that Fault does not
    have, a value of the wrong type, or one that no fault can have.
    """
    for key in entry:
        require_field(key, where)
    missing = [name for name in ("kind", "layer") if name not in entry]
    if missing:
        raise UsageError(f"{where}: a fault needs '{missing[0]}'")
    values = {key: _value(key, value, where) for key, value in entry.items()}
    try:
        return Fault(**values)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def require_field(key: str, where: str) -> None:
    """Raise UsageError, beginning with `where`, unless Fault has a field called `key`."""
    if key not in FIELDS:
        close = difflib.get_close_matches(key, FIELDS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UsageError(f"{where}: unknown key '{key}': {hint}a fault has {', '.join(FIELDS)}")


def entry_of(fault: Fault) -> dict[str, Any]:
    """The fault as a JSON object, every field written out."""
    entry: dict[str, Any] = json.loads(json.dumps(asdict(fault)))
    return entry


def short_form(entry: Mapping[str, Any]) -> str:
    """An entry as `--inject` takes it, without the fields that have their default value."""
    outside = entry["layer"] is None
    options = {key: value for key, value in options_of(entry).items() if not (outside and key == "site")}
    changed = [f"{key}={_text(value)}" for key, value in options.items()]
    return f"{entry['kind']}@{entry['site' if outside else 'layer']}{':' if changed else ''}{','.join(changed)}"


def options_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an entry, beside kind and layer, whose value is not the default."""
    given = {key: value for key, value in entry.items() if key not in ("kind", "layer")}
    return {key: value for key, value in given.items() if value != DEFAULTS.get(key)}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(key: str, value: Any, where: str) -> Any:
    try:
        # As JSON: there a list may be a tuple, and yet "1" is no number and 1 no truth value.
        return _types()[key].validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise UsageError(f"{where}: {key} is {json.dumps(value)}: {error.errors()[0]['msg']}") from error


@cache
def _types() -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(Fault)
    return {name: TypeAdapter(hints[name]) for name in FIELDS}
