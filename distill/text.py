"""Results as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from distill.diagnosis import Diagnosis
from distill.training.comparison import BEFORE, Outcome
from hal.significance import summarise


def show_diagnosis(found: Diagnosis, console: Console) -> None:
    """Print each loss with its share of the total, and the advice."""
    rows = [
        [
            name,
            f"{scale.mean:.4f} ± {scale.std:.4f}",
            f"{scale.weight:g}" if scale.share is not None else "",
            f"{scale.share:.1%}" if scale.share is not None else "reported only",
        ]
        for name, scale in found.scales.items()
    ]
    _print_table(console, ["loss", "mean ± std", "weight", "share of the total"], rows)
    if found.attention_effect is not None:
        effect = f"{found.attention_effect:.1%}"
        console.print(f"attention weighting changes the loss of keys and values by {effect}", highlight=False)
    for line in found.advice or ("in proportion: nothing to change",):
        console.print(f"- {line}", highlight=False)


def show_outcome(outcome: Outcome, console: Console) -> None:
    """Print the arms' measures and what they allow to be said."""
    _print_table(console, *table(outcome))
    for line in statements(outcome):
        console.print(f"- {line}", highlight=False)


def markdown(outcome: Outcome, command: str) -> str:
    """The same as a page."""
    header, rows = table(outcome)
    lines = ["# Distillation", "", f"`{command}`", "", _row(header), _row(["---"] * len(header)), *map(_row, rows), ""]
    return "\n".join([*lines, *(f"- {line}" for line in statements(outcome))]) + "\n"


def table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each arm's measures with their 95 % intervals, and what differs from the first arm."""
    measures = list(outcome.values[BEFORE])
    rows = [
        [arm, *(_interval(outcome.values[arm][measure]) for measure in measures)] for arm in (BEFORE, *outcome.arms)
    ]
    return ["arm", *measures], rows


def statements(outcome: Outcome) -> list[str]:
    """What the corrected tests carry, a line each."""
    shown = [entry for entry in outcome.comparisons if entry.verdict != "not shown"]
    lines = [
        f"{entry.name}: {entry.first} {entry.verdict} than {entry.second} by {abs(entry.difference):.3f} "
        f"(p {entry.p_decisive:.2g})"
        for entry in shown
    ]
    if outcome.comparisons:
        number = len(outcome.comparisons)
        lines.append(f"{number - len(shown)} of {number} comparisons show no difference")
    return lines


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4f}"
    summary = summarise(values)
    return f"{summary.mean:.4f} ({summary.low:.4f} to {summary.high:.4f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    made = Table(*header, box=None, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    console.print(made)
