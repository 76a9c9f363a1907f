"""Plots of results, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from aqn.experiments.result import Result


def plot_cells(result: Result) -> str:
    """Mean and 95 % interval of every condition, one panel a measure, over the points."""
    measures = list(dict.fromkeys(cell.measure for cell in result.cells))
    points = list(dict.fromkeys(cell.point for cell in result.cells))

    def draw(panels: Sequence[Axes]) -> None:
        for axes, measure in zip(panels, measures, strict=True):
            conditions = list(dict.fromkeys(cell.condition for cell in result.cells if cell.measure == measure))
            for place, condition in enumerate(conditions):
                cells = [c for c in result.cells if (c.measure, c.condition) == (measure, condition)]
                shift = 0.7 * (place / max(len(conditions) - 1, 1) - 0.5)
                x = [points.index(cell.point) + shift for cell in cells]
                mean = [cell.summary.mean for cell in cells]
                half = [cell.summary.mean - cell.summary.low for cell in cells]
                axes.errorbar(x, mean, yerr=half, fmt="o", markersize=3, capsize=2, label=condition)
            axes.set_xticks(range(len(points)), points, rotation=30, ha="right")
            axes.set_ylabel(measure)
            axes.legend(fontsize="small")
        panels[0].set_title(result.title)

    return _svg(draw, rows=len(measures), width=3 + 1.2 * len(points))


def plot_lines(
    title: str, x_label: str, y_label: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> str:
    """Named curves (x, y) in one panel."""

    def draw(panels: Sequence[Axes]) -> None:
        for name, (x, y) in lines.items():
            panels[0].plot(x, y, label=name, linewidth=1.2)
        panels[0].set(title=title, xlabel=x_label, ylabel=y_label)
        panels[0].legend(fontsize="small")

    return _svg(draw, rows=1, width=7)


def _svg(draw: Callable[[Sequence[Axes]], None], rows: int, width: float) -> str:
    # The same data give the same file.
    with mpl.rc_context({"svg.hashsalt": "aqn", "svg.fonttype": "none"}):
        figure = Figure(figsize=(min(width, 16), 3.2 * rows), layout="constrained")
        draw([figure.add_subplot(rows, 1, row + 1) for row in range(rows)])
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})  # type: ignore[no-untyped-call]  # matplotlib's
    return text.getvalue()
