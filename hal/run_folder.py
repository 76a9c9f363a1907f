"""A folder of finished runs, each of which is made once: what it holds, and what was already done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hal.errors import UsageError
from hal.files import write_text

SETTINGS: Final = "study.json"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down under what `settings` (plain JSON values) the runs in this folder are made. Raises UsageError that
    names the settings which differ when it already holds runs of others, or the file when it is damaged.
    """
    record = folder / SETTINGS
    if not record.is_file():
        write_text(record, json.dumps(settings, indent=1) + "\n")
        return
    held = _read(record)
    wanted = json.loads(json.dumps(settings))
    different = sorted(key for key in {*held, *wanted} if held.get(key) != wanted.get(key))
    if different:
        raise UsageError(
            f"{folder} holds runs of other settings ({', '.join(different)}): choose another --out, or give the "
            f"settings in its {SETTINGS}"
        )


def made_once(file: Path, make: Callable[[], dict[str, Any]], beside: Sequence[Path] = ()) -> dict[str, Any]:
    """The record in `file`, or what `make` returns, which is then written there; likewise when a file is missing that
    should lie `beside` it. Raises UsageError for a record that is damaged.
    """
    if file.is_file() and all(path.is_file() for path in beside):
        return _read(file)
    made = make()
    write_text(file, json.dumps(made, indent=1) + "\n")
    return made


def _read(file: Path) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is damaged ({' '.join(str(error).split())}): remove it") from error
    if not isinstance(held, dict):
        raise UsageError(f"{file} is damaged (a {type(held).__name__}, and no record): remove it")
    return held
