"""An experiment's result as tables: on the terminal, and as a page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from aqn.experiments.result import Result
from hal.significance import Summary


def show(result: Result, console: Console) -> None:
    """Print the tables and what they allow to be said."""
    console.print(f"[bold]{result.title}[/bold]")
    for header, rows in _tables(result):
        if not rows:
            continue
        table = Table(*header, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    for statement in result.statements:
        console.print(f"- {statement}", highlight=False)


def markdown(result: Result) -> str:
    """The same as a page in Markdown."""
    parts = [f"# {result.title}", "", f"`{result.options['command']}`" if "command" in result.options else "", ""]
    for header, rows in _tables(result):
        if rows:
            parts += [_row(header), _row(["---"] * len(header)), *map(_row, rows), ""]
    return "\n".join([*parts, *(f"- {statement}" for statement in result.statements)]) + "\n"


def _tables(result: Result) -> list[tuple[list[str], list[list[str]]]]:
    cells = [
        [
            cell.point,
            cell.condition,
            cell.measure,
            str(cell.summary),
            _interval(cell.summary),
            str(len(cell.values)),
        ]
        for cell in result.cells
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
        for entry in result.comparisons
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


def _interval(summary: Summary) -> str:
    return f"{summary.low:.4f} to {summary.high:.4f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.3g}" if value >= 1e-4 else "< 1e-4"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
