"""Results and comparisons as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Console
from rich.table import Table

from conformance.compare import Agreement
from conformance.recheck import SEEDS
from conformance.results import Results

_SHOWN = 40
_VERDICTS = ("pass", "fail", "known", "unsupported")
_OUTCOMES = ("agree", "disagree", "recheck", "known", "unsupported")


def print_results(results: Results, console: Console, quiet: bool) -> None:
    """A table of verdicts by family, every failure, what the declarations lack, and the verdict."""
    line = _counts(results.count, _VERDICTS)
    if not quiet:
        rows: list[tuple[str, str]] = [(case.family, case.verdict) for case in results.cases]
        _say(console, f"conformance of {results.backend} ({results.environment.get('device_name', '?')})")
        console.print(_by_family(rows, _VERDICTS))
        _list(console, ((case.case, case.message) for case in results.cases if case.verdict == "fail"), "fails")
        needed = [(key, reason) for key, reason in results.known if key not in (*results.stale, *results.unmatched)]
        _list(console, needed, "declared")
        _list(console, ((key, "passed in every case that ran: remove it") for key in results.stale), "stale")
        _list(console, ((key, "names no case: correct or remove it") for key in results.unmatched), "unmatched")
    _say(console, f"VERDICT: {results.verdict} ({line})")


def print_agreement(agreement: Agreement, console: Console, quiet: bool) -> None:
    """A table of outcomes by family, every disagreement, and the verdict."""
    verdict = "agree" if agreement.agrees else "disagree"
    if not quiet:
        _say(console, f"{agreement.candidate} beside {agreement.reference} by {agreement.standard}")
        console.print(_by_family([(case.case.partition("/")[0], case.outcome) for case in agreement.cases], _OUTCOMES))
        for outcome in ("disagree", "recheck"):
            _list(console, ((case.case, case.reason) for case in agreement.cases if case.outcome == outcome), outcome)
        if agreement.only_one:
            _say(console, f"note: {len(agreement.only_one)} cases are in one file only and were not compared")
        if agreement.inputs < agreement.inputs_asked:
            _say(
                console,
                f"note: {agreement.inputs} inputs were judged, {agreement.standard} asks for {agreement.inputs_asked}: "
                "run both with more --seeds",
            )
        waiting = agreement.count("recheck")
        if waiting:
            _say(
                console,
                f"note: {waiting} cases want the recheck: run them on both backends with --cases @FILE --seeds "
                f"{SEEDS} --json, FILE written by --recheck-list, and compare again with --recheck twice",
            )
    _say(console, f"VERDICT: {verdict} ({_counts(agreement.count, _OUTCOMES)})")


def _by_family(rows: list[tuple[str, str]], columns: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("family")
    for column in columns:
        table.add_column(column, justify="right")
    for family in dict.fromkeys(name for name, _ in rows):
        mine = [word for name, word in rows if name == family]
        table.add_row(family, *(str(mine.count(column)) for column in columns))
    return table


def _list(console: Console, entries: Iterable[tuple[str, str]], word: str) -> None:
    shown = list(entries)
    for name, reason in shown[:_SHOWN]:
        _say(console, f"{word}: {name}: {reason}")
    if len(shown) > _SHOWN:
        _say(console, f"... and {len(shown) - _SHOWN} more; --json has all")


def _counts(count: Callable[[str], int], words: tuple[str, ...]) -> str:
    return ", ".join(f"{count(word)} {word}" for word in words)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
