"""The outcome of an experiment: samples, summaries and comparisons."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch

from hal.plain_json import finite
from hal.significance import Comparison, Summary, compare, correct, summarise

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
        return finite(document)  # type: ignore[no-any-return]  # a mapping stays one


def environment(versions: Mapping[str, str]) -> dict[str, str]:
    """Where this ran."""
    return {"python": platform.python_version(), "torch": torch.__version__, **versions}
