"""The doctor's findings as text for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hal.doctor import Details, Entry, Facts

PIPE_WIDTH = 120  # without a terminal there is no width to ask for
TABLE_WIDTH = 110  # below this the reasons leave the table: in a column of a few letters nobody reads them


def make_console() -> Console:
    """A console on standard output: as wide as the terminal, or as COLUMNS says, or PIPE_WIDTH in a pipe."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return Console(width=None if known else PIPE_WIDTH, highlight=False)


def print_facts(facts: Facts, console: Console) -> None:
    """Print a table of all backends, and a paragraph for each that can run here."""
    apart = console.width < TABLE_WIDTH
    console.print(Text(f"Python {facts.python}, torch {facts.torch}"))
    console.print(_table(facts, with_reasons=not apart))
    if apart:
        console.print(_grid([(entry.info.name, entry.info.reason) for entry in facts.backends]))
    for entry in facts.backends:
        if entry.info.available:
            console.print()
            console.print(Text(entry.info.name, style="bold"))
            console.print(_grid(_lines(entry)))


def _table(facts: Facts, with_reasons: bool) -> Table:
    table = Table(show_lines=with_reasons)
    headings = ["backend", "status", "available", "devices", "provided by", "reason"]
    for heading in headings if with_reasons else headings[:-1]:
        # Folding keeps every character, however narrow the console.
        table.add_column(heading, overflow="fold")
    for entry in facts.backends:
        cells = _cells(entry)
        table.add_row(*(cells if with_reasons else cells[:-1]))
    return table


def _cells(entry: Entry) -> list[Text]:
    # Text and not markup: a reason such as "pip install 'package[extra]'" would lose its brackets.
    info = entry.info
    return [
        Text(info.name, style="bold"),
        Text(info.status, style="red" if info.status == "broken" else ""),
        Text("yes", style="green") if info.available else Text("no", style="yellow"),
        Text(str(info.devices)),
        Text(info.plugin),
        Text(info.reason),
    ]


def _grid(lines: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold", min_width=8)
    grid.add_column(overflow="fold")
    for label, value in lines:
        grid.add_row(Text(label), Text(value))
    return grid


def _lines(entry: Entry) -> list[tuple[str, str]]:
    lines = _describe(entry.details) if entry.details else []
    return lines + [("problem", problem) for problem in entry.problems]


def _describe(details: Details) -> list[tuple[str, str]]:
    native = ", ".join(details.native_operators) or "none"
    return [
        ("devices", ", ".join(f"{index}: {name}" for index, name in enumerate(details.device_names))),
        ("versions", _pairs(details.versions, " ")),
        ("dtypes", ", ".join(details.dtypes)),
        ("collective", details.collective),
        ("operators", f"{details.operators} of the catalogue; its own: {native}"),
        *(("unsupported", f"{name}: {reason}") for name, reason in details.unsupported_operators.items()),
        *(("known failure", f"{name}: {reason}") for name, reason in details.known_failures.items()),
        ("numeric switches", _pairs(details.numeric_switches, "=")),
    ]


def _pairs(values: Mapping[str, str], joint: str) -> str:
    return ", ".join(f"{name}{joint}{value}" for name, value in values.items())
