"""Configuration documents: YAML in, a validated model out, and one line that says what is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from hal.errors import UsageError

# What pydantic puts into a place for the member of a union that it tried: "list[int]", "literal['a','b']".
_UNION_TAG: Final = re.compile(r"\w+\[.*\]")

Document = TypeVar("Document", bound=BaseModel)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; a missing, unreadable or wrong one is a UsageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def validated(model: type[Document], document: Mapping[Any, Any], source: str) -> Document:
    """`document` as a `model`; whatever is wrong with it becomes one UsageError that names `source`, key, value and
    rule, and for an unknown key the nearest known one.
    """
    try:
        return model.model_validate(dict(document))
    except ValidationError as error:
        raise UsageError(f"{source}: {_explain(error, model)}") from error


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    first = _deepest(error)
    place = ".".join(str(part) for part in first["loc"] if not _UNION_TAG.fullmatch(str(part)))
    if first["type"] == "extra_forbidden":
        known = _keys(model, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key '{place}': {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("value_error", "missing"):
        return f"{place}: {message}" if place else message
    return f"{place} is {first['input']!r}: {message}"


def _deepest(error: ValidationError) -> Any:
    """The first thing that is wrong; of the members of a union the one that came farthest."""
    first = error.errors()[0]
    place = first["loc"][:-1]
    if not first["loc"] or not _UNION_TAG.fullmatch(str(first["loc"][-1])):
        return first
    return max(
        (entry for entry in error.errors() if entry["loc"][: len(place)] == place), key=lambda it: len(it["loc"])
    )


def _keys(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The keys of the section at `path`, by both names where they have two."""
    for part in path:
        model = next(_sections(model.model_fields[str(part)].annotation))
    fields = model.model_fields.items()
    return [field.alias or name for name, field in fields] + [name for name, field in fields if field.alias]


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    for entry in (annotation, *get_args(annotation)):
        if isinstance(entry, type) and issubclass(entry, BaseModel):
            yield entry
