"""The outcome of an experiment: samples, summaries and comparisons; as JSON, as a table, as a plot."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from aqn.experiments.statistics import Comparison, Summary, compare, correct, summarise
from hal.errors import UsageError
from hal.files import require_writable, write_text

SCHEMA: Final = "aqn-experiment/1"


@dataclass(frozen=True)
class Cell:
    """All seeds of one condition at one point: `point` names the operating point ("layer 7, threshold 0.3"),
    `condition` what was done, `measure` what was measured, `values` one number a seed.
    """

    point: str
    condition: str
    measure: str
    values: tuple[float, ...]

    @property
    def summary(self) -> Summary:
        """Mean, spread and interval."""
        return summarise(self.values)


@dataclass
class Result:
    """One experiment: its `title`, the `options` it ran with, its `cells`, the corrected `comparisons` and what they
    allow to be said.
    """

    experiment: str
    title: str
    options: dict[str, Any]
    environment: dict[str, str]
    cells: list[Cell] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)

    def cell(self, point: str, condition: str, measure: str) -> Cell:
        """The one cell of these names; KeyError when there is none."""
        for cell in self.cells:
            if (cell.point, cell.condition, cell.measure) == (point, condition, measure):
                return cell
        raise KeyError((point, condition, measure))

    def compare(self, measure: str, pairs: Sequence[tuple[str, str]]) -> None:
        """Compare pairs of conditions at every point that has both, corrected over all of them together."""
        found = []
        for point in dict.fromkeys(cell.point for cell in self.cells):
            at = {cell.condition: cell for cell in self.cells if (cell.point, cell.measure) == (point, measure)}
            found += [
                compare(f"{point}: {measure}", (first, at[first].values), (second, at[second].values))
                for first, second in pairs
                if first in at and second in at
            ]
        self.comparisons = correct([*self.comparisons, *found])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes null."""
        document = {
            "schema": SCHEMA,
            "experiment": self.experiment,
            "title": self.title,
            "options": self.options,
            "environment": self.environment,
            "cells": [{**asdict(cell), "summary": asdict(cell.summary)} for cell in self.cells],
            "comparisons": [{**asdict(entry), "verdict": entry.verdict} for entry in self.comparisons],
            "statements": self.statements,
        }
        return _finite(document)  # type: ignore[no-any-return]  # a mapping stays one

    def save(self, directory: Path) -> list[Path]:
        """Write EXPERIMENT.json, .md and, with matplotlib, .svg into `directory`; returns what was written."""
        paths = [directory / f"{self.experiment}{ending}" for ending in (".json", ".md")]
        write_text(paths[0], json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")
        write_text(paths[1], self.markdown())
        try:
            from aqn.experiments.plot import plot_cells
        except ImportError:  # matplotlib is an extra
            return paths
        paths.append(directory / f"{self.experiment}.svg")
        write_text(paths[2], plot_cells(self))
        return paths

    def show(self, console: Console) -> None:
        """Print the tables and what they allow to be said."""
        console.print(f"[bold]{self.title}[/bold]")
        for header, rows in self._tables():
            if not rows:
                continue
            table = Table(*header, box=None, pad_edge=False)
            for row in rows:
                table.add_row(*row)
            console.print(table)
            console.print()
        for statement in self.statements:
            console.print(f"- {statement}", highlight=False)

    def markdown(self) -> str:
        """The same as a page."""
        parts = [f"# {self.title}", "", f"`{self.options['command']}`" if "command" in self.options else "", ""]
        for header, rows in self._tables():
            if rows:
                parts += [_row(header), _row(["---"] * len(header)), *map(_row, rows), ""]
        return "\n".join([*parts, *(f"- {statement}" for statement in self.statements)]) + "\n"

    def _tables(self) -> list[tuple[list[str], list[list[str]]]]:
        cells = [
            [
                cell.point,
                cell.condition,
                cell.measure,
                str(cell.summary),
                _interval(cell.summary),
                str(len(cell.values)),
            ]
            for cell in self.cells
        ]
        compared = [
            [
                entry.name,
                f"{entry.first} - {entry.second}",
                f"{entry.difference:+.4f} [{entry.low:+.4f}, {entry.high:+.4f}]",
                f"[{entry.paired_low:+.4f}, {entry.paired_high:+.4f}]" if not math.isnan(entry.paired_low) else "",
                f"{entry.effect:+.2f}",
                _p(entry.p),
                _p(entry.p_corrected),
                _p(entry.p_paired_corrected),
                entry.verdict,
            ]
            for entry in self.comparisons
        ]
        return [
            (["point", "condition", "measure", "mean ± std", "95 % interval", "seeds"], cells),
            (
                [
                    "comparison",
                    "of",
                    "difference [95 %, Welch]",
                    "[95 %, paired]",
                    "g",
                    "Welch p",
                    "p (Holm)",
                    "paired p (Holm)",
                    "verdict",
                ],
                compared,
            ),
        ]


def require_output(directory: Path) -> None:
    """Make `directory` if need be, and raise UsageError now when nothing could be written there later."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {directory}: {error.strerror}; choose another --out") from error
    require_writable(directory / "result.json")


def environment(versions: Mapping[str, str]) -> dict[str, str]:
    """Where this ran."""
    return {"python": platform.python_version(), "torch": torch.__version__, **versions}


def _interval(summary: Summary) -> str:
    return f"{summary.low:.4f} to {summary.high:.4f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.3g}" if value >= 1e-4 else "< 1e-4"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
