"""What a run logged over its steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hal.files import write_text


class Curve:
    """What was logged, kept in a file beside the checkpoints so that a resumed run has all of it. `new` are the steps
    of this process.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kept: dict[int, dict[str, float]] = {}
        self.new: list[int] = []
        if file.is_file():
            self._kept = {int(step): values for step, values in json.loads(file.read_text(encoding="utf-8")).items()}

    def add(self, step: int, values: dict[str, float]) -> None:
        """Log `values` of a step."""
        self._kept.setdefault(step, {}).update(values)
        self.new.append(step)
        write_text(self._file, json.dumps(self._kept))

    def all(self) -> list[tuple[int, dict[str, float]]]:
        """Every step and what was logged at it, those of former processes too."""
        return sorted(self._kept.items())

    def drop(self) -> None:
        """Remove the file: the run is done."""
        self._file.unlink(missing_ok=True)


def curves(folder: Path, arms: Sequence[str], value: str) -> dict[str, tuple[list[float], list[float]]]:
    """The logged `value` of each arm over its steps, averaged over the seeds that logged the step."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for arm in arms:
        at: dict[int, list[float]] = {}
        for file in sorted(folder.glob(f"{arm}-seed*.json")):
            for step, values in json.loads(file.read_text(encoding="utf-8"))["curve"]:
                if value in values:
                    at.setdefault(step, []).append(values[value])
        if at:
            steps = sorted(at)
            found[arm] = ([float(step) for step in steps], [sum(at[step]) / len(at[step]) for step in steps])
    return found
