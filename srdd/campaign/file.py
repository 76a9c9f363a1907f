"""The campaign file: versioned JSON that says which faults to put where, and which clean controls to scan."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hal.errors import UsageError
from srdd.trials import TRIALS

SCHEMA = "srdd-campaign/1"
BUNDLED = "bundled"
ALL = "all"

_FORM = ConfigDict(extra="forbid", strict=True, frozen=True)


class Grid(BaseModel):
    """Faults in compact form: the Cartesian product of the values listed for each field in `each` and of one entry
    from each list in `variants` (several fields that go together), `repeats` times with other hidden units, random
    draws and prompts. "all" stands for every kind, layer or innermost module; a layer may be first, middle or last;
    a site may be a group: @innermost, @weights (modules that have one), @constants (that have an epsilon or a scale).
    """

    model_config = _FORM

    each: dict[str, list[Any] | Literal["all"]]
    variants: dict[str, list[dict[str, Any]]] = {}
    repeats: int = Field(default=1, ge=1)


class CleanControls(BaseModel):
    """Scans of the model as it is: `count` with prompts of the campaign's own drawing, over all dtypes together,
    and one for each list in `prompts` and each dtype.
    """

    model_config = _FORM

    count: int = Field(default=0, ge=0)
    prompts: list[list[str]] = []


class Campaign(BaseModel):
    """A campaign file. `model` is "bundled" or a checkpoint directory; `prompts` a file of lines to draw from
    (built-in sentences without it); `seed` decides everything drawn: hidden units, random faults, prompts; `trials` is
    how often each layer runs on its own input.
    """

    model_config = _FORM

    schema_version: Literal["srdd-campaign/1"] = Field(alias="schema")
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    model: str = BUNDLED
    dtypes: list[Literal["auto", "float32", "bfloat16", "float16"]] = Field(default=["auto"], min_length=1)
    level: Literal["quick", "full"] = "full"
    trials: int = Field(default=TRIALS, ge=2)
    prompts: str | None = None
    faults: list[dict[str, Any]] = []
    grids: list[Grid] = []
    clean: CleanControls = CleanControls()


def read_campaign(name: str) -> Campaign:
    """The campaign in the file `name`, or the shipped one of that name. Raises UsageError for a missing file, one
    that is not JSON, another version, and anything that breaks the form, unknown keys included.
    """
    try:
        document = json.loads(_text(name))
    except OSError as error:
        raise UsageError(f"cannot read campaign {name}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"campaign {name} is not JSON: {error}") from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise UsageError(f'campaign {name} has schema {found!r}, this version reads "schema": "{SCHEMA}"')
    try:
        return Campaign.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"campaign {name} breaks {SCHEMA} at {place}: {first['msg']}") from error


def shipped() -> list[str]:
    """The names of the campaigns that come with the package."""
    names = (file.name for file in resources.files(__package__).joinpath("shipped").iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def _text(name: str) -> str:
    if name in shipped():
        return resources.files(__package__).joinpath("shipped", f"{name}.json").read_text(encoding="utf-8")
    path = Path(name)
    if not path.suffix and not path.exists():
        raise UsageError(f"there is no campaign '{name}': give a file, or one of {', '.join(shipped())}")
    return path.read_text(encoding="utf-8")
