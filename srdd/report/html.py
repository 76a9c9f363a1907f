"""The report as one HTML page that needs nothing beside it: no script, no font, no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from srdd.diagnose import OUTSIDE, Finding, place
from srdd.report.model import Report
from srdd.report.number import number
from srdd.report.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Plot, limits_in_words, plot_of
from srdd.report.series import Series, series_of
from srdd.trials import describe_trials, trials_of

_FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}


@dataclass(frozen=True)
class _Row:
    index: int
    label: str
    accused: bool
    cells: tuple[tuple[str, str], ...]  # the number, and what it does there: "accuses", "remark" or nothing


@dataclass(frozen=True)
class _Figure:
    series: Series
    plot: Plot
    limits: str


def render_html(report: Report) -> str:
    """The whole report as one HTML document. Whatever stands in it, a model's name for example, is escaped, and the
    page forbids the browser to run or fetch anything.
    """
    environment = Environment(
        loader=PackageLoader("srdd.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    all_series = series_of(report)
    page = environment.get_template("page.html.jinja").render(
        report=report,
        name=Path(report.model).name or report.model,
        about=report.measurements,
        figures=_figures(report, all_series),
        series=all_series,
        rows=_rows(report, all_series),
        tiles=_tiles(report),
        closest=_closest(report, all_series),
        trials=_trials(report),
        times_over=_times_over,
        place=place,
        frame=_FRAME,
    )
    # A name may hold half of a surrogate pair, which no file can: it becomes a question mark.
    return page.encode("utf-8", "replace").decode("utf-8")


def _figures(report: Report, all_series: list[Series]) -> list[_Figure]:
    indices = [layer.index for layer in report.measurements.layers]
    return [_Figure(series, plot_of(series, indices), limits_in_words(series)) for series in all_series]


def _rows(report: Report, all_series: list[Series]) -> list[_Row]:
    layers = report.measurements.layers
    accused = {finding.layer for finding in report.findings if place(finding, layers) != OUTSIDE}
    return [
        _Row(
            layer.index,
            report.diagnosis.labels[row],
            layer.index in accused,
            tuple((number(series.values[row]), _weight(series, row)) for series in all_series),
        )
        for row, layer in enumerate(layers)
    ]


def _weight(series: Series, row: int) -> str:
    if not series.beyond(row):
        return ""
    return "accuses" if series.accuses else "remark"


def _tiles(report: Report) -> list[tuple[str, str]]:
    cost, about = report.cost, report.measurements
    memory = cost.peak_memory_bytes
    return [
        ("findings", str(len(report.findings))),
        ("layers", str(len(about.layers))),
        ("tokens", str(about.tokens)),
        ("forward equivalents", f"{cost.forward_equivalents:.2f}"),
        ("wall time", f"{cost.wall_s:.1f} s"),
        ("peak memory", f"{memory / 2**20:.0f} MiB" if memory is not None else "not known"),
    ]


def _trials(report: Report) -> str:
    trials = trials_of(report.measurements)
    return f"{trials} {describe_trials(trials, report.level == 'full')}." if trials else ""


def _closest(report: Report, all_series: list[Series]) -> str:
    """For a healthy report: how far from its limit the strongest evidence stayed, in words."""
    scores = report.diagnosis.scores
    if report.findings or not any(scores):
        return ""
    row = max(range(len(scores)), key=lambda row: scores[row])
    for series in all_series[1:]:
        if series.accuses and series.values[row] / series.upper[row] == scores[row]:
            probe = series.title.lower()
            break
    else:
        probe = "a probe"
    layer = report.measurements.layers[row].index
    return f"The strongest evidence is {probe} at layer {layer}: {scores[row]:.0%} of its limit."


def _times_over(finding: Finding, entry: int) -> str:
    excess = finding.evidence[entry].excess
    return "beyond measure" if excess > 1e300 else f"{number(excess)} times"
