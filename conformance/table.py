"""The table people read: operator by dtype by backend, as Markdown and as an HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from conformance.results import CaseResult, Results
from conformance.rows import Row
from hal.errors import UsageError

_FIGURES = ("max ULP", "mean ULP", "MARE", "MERE", "RMSE", "of bound")
# Ranges in which relative figures say something: the others hold Inf, or numbers where one unit is the whole value.
_PLAIN = ("normal", "uniform", "one_sided", "near_zero")
_SIGN = {"pass": "pass", "fail": "FAIL", "known": "known", "unsupported": "-"}


@dataclass(frozen=True)
class Cell:
    """One operator in one dtype on one backend: verdict over all its cases, and the worst figures over those of
    ordinary values (means: the mean over elements).
    """

    verdict: str
    cases: int
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """One row of the table: a subject, a dtype, and a cell for each backend (None where it did not run)."""

    subject: str
    dtype: str
    cells: tuple[Cell | None, ...]


def operator_lines(runs: Sequence[Results]) -> list[Line]:
    """Operators by dtype."""
    keys = dict.fromkeys((case.subject, case.dtype) for run in runs for case in run.cases if case.family == "operators")
    return [
        Line(
            subject,
            dtype,
            tuple(
                _cell(
                    [
                        case
                        for case in run.cases
                        if (case.family, case.subject, case.dtype) == ("operators", subject, dtype)
                    ]
                )
                for run in runs
            ),
        )
        for subject, dtype in keys
    ]


def family_lines(runs: Sequence[Results]) -> list[Line]:
    """Everything else, by family and subject."""
    keys = dict.fromkeys((case.family, case.subject) for run in runs for case in run.cases)
    return [
        Line(
            f"{family}: {subject}",
            "",
            tuple(
                _cell([case for case in run.cases if (case.family, case.subject) == (family, subject)]) for run in runs
            ),
        )
        for family, subject in keys
        if family != "operators"
    ]


def render_markdown(runs: Sequence[Results], note: str = "") -> str:
    """Both tables as Markdown, with the runs they come from and a `note` about them."""
    parts = ["# Conformance", ""]
    parts += ["Made by `python -m conformance table RESULTS.json ... --markdown FILE`; do not edit.", ""]
    parts += _bullets(runs)
    parts += ["", note] if note else []
    parts += ["", "## Operators", "", *_explanation()]
    parts += _operator_table(runs)
    parts += ["", "## Everything else", "", *_plain_table(runs)]
    parts += _notes(runs)
    return "\n".join(parts) + "\n"


def render_html(runs: Sequence[Results], note: str = "") -> str:
    """Both tables as one page that needs nothing from elsewhere; a UsageError where jinja2 is not installed."""
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise UsageError("the HTML table needs jinja2: pip install 'srdd-hal[report]'") from error
    source = resources.files("conformance").joinpath("table.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(
        runs=runs, note=note, figures=_FIGURES, operators=operator_lines(runs), others=family_lines(runs), sign=_SIGN
    )


def _cell(cases: Sequence[CaseResult]) -> Cell | None:
    if not cases:
        return None
    verdicts = {case.verdict for case in cases}
    verdict = next(word for word in ("fail", "known", "pass", "unsupported") if word in verdicts)
    rows = [row for case in cases if case.case.rpartition("/")[2] in _PLAIN for row in case.rows]
    return Cell(verdict, len(cases), _figures(rows))


def _figures(rows: Sequence[Row]) -> tuple[str, ...]:
    if not rows:
        return ("",) * len(_FIGURES)
    if all(row.exact for row in rows):
        wrong = sum(row.excess > 0 for row in rows)
        return ("equal" if not wrong else f"{wrong} unequal", *[""] * (len(_FIGURES) - 1))
    total = sum(row.elements for row in rows)
    return (
        _number(max(row.max_ulp for row in rows)),
        _number(sum(row.mean_ulp * row.elements for row in rows) / max(total, 1)),
        _number(max(row.errors.mare for row in rows)),
        _number(sum(row.errors.mere * row.elements for row in rows) / max(total, 1)),
        _number(max(row.errors.rmse for row in rows)),
        _number(max(row.excess for row in rows)),
    )


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


def _bullets(runs: Iterable[Results]) -> list[str]:
    return [
        f"- **{run.backend}**: {run.environment.get('device_name', '?')}, torch {run.environment.get('torch', '?')}; "
        f"{run.selection} run, {len(run.cases)} cases, verdict **{run.verdict}** ("
        + ", ".join(f"{run.count(word)} {word}" for word in ("pass", "fail", "known", "unsupported"))
        + ")"
        for run in runs
    ]


def _explanation() -> list[str]:
    return [
        "Largest and mean error in units in the last place (ULP) of the result's dtype, largest and mean relative",
        "error (MARE, MERE; small values are judged absolutely and are not in them), root mean square error, and the",
        "largest error as a share of what rounding explains, by which the verdict is made (above 1 fails). Figures are",
        "those of ordinary values (" + ", ".join(_PLAIN) + "); the verdict covers all ranges and sizes.",
        "",
    ]


def _operator_table(runs: Sequence[Results]) -> list[str]:
    head = ["operator", "dtype", "backend", "verdict", *_FIGURES]
    lines = [_markdown_row(head), _markdown_row(["---"] * 4 + ["---:"] * len(_FIGURES))]
    for line in operator_lines(runs):
        for run, cell in zip(runs, line.cells, strict=True):
            if cell is not None:
                lines.append(_markdown_row([line.subject, line.dtype, run.backend, _SIGN[cell.verdict], *cell.figures]))
    return lines


def _plain_table(runs: Sequence[Results]) -> list[str]:
    lines = [_markdown_row(["what", *(run.backend for run in runs)]), _markdown_row(["---"] * (1 + len(runs)))]
    for line in family_lines(runs):
        cells = ["" if cell is None else f"{_SIGN[cell.verdict]} ({cell.cases})" for cell in line.cells]
        lines.append(_markdown_row([line.subject, *cells]))
    return lines


def _notes(runs: Sequence[Results]) -> list[str]:
    lines: list[str] = []
    for run in runs:
        reasons = dict.fromkeys(
            f"- {run.backend}, {case.subject}: {case.message.partition(' [')[0]}"
            for case in run.cases
            if case.verdict == "known"
        )
        lines += reasons
    return ["", "## Known failures", "", *lines] if lines else []


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
