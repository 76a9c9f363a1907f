"""Where the marks of a per-layer plot lie: numbers for the SVG template, in the units of its view box."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from srdd.report.number import number
from srdd.report.series import Series

WIDTH, HEIGHT = 360.0, 180.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 22.0, 24.0  # margins: y labels, -, flags of layers beyond a limit, x labels
_TICK_GAP = 18.0  # least distance of two y labels
_FLAG_GAP = 20.0  # and of two flags, each at most three digits wide
_DECADES = 1e6  # values smaller than the largest by more than this are drawn as zero,
_BELOW_LIMIT = 100.0  # unless they are within this factor of a limit, below which healthy layers lie
_LINEAR = 20.0  # a range of sizes below this needs no logarithm
_FEW_DECADES = 3  # on a logarithmic axis, of both signs together: fewer are labelled at 2 and 5 too
_HUGE = 1e300  # stands for infinity in a JSON report


@dataclass(frozen=True)
class Mark:
    """One layer's value: its place, its words, and whether it is beyond its limit or off the scale (infinite)."""

    x: float
    y: float
    left: float
    width: float
    words: str
    beyond: bool
    infinite: bool
    missing: bool


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """Everything the template draws. `line` and `limits` are SVG paths; `flags` label the layers beyond a limit, those
    furthest out first where not all have room; `summary` says the same in words.
    """

    marks: tuple[Mark, ...]
    line: str
    limits: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    flags: tuple[Tick, ...]
    radius: float
    summary: str


def plot_of(series: Series, indices: Sequence[int]) -> Plot:
    """Lay out `series`, whose rows are the layers `indices`."""
    count = len(indices)
    step = (WIDTH - LEFT - RIGHT) / max(count, 1)
    xs = [LEFT + (row + 0.5) * step for row in range(count)]
    scale = _Scale(series.values, [*series.upper, *series.lower])
    marks = tuple(_mark(series, row, index, xs[row], step, scale) for row, index in enumerate(indices))
    return Plot(
        marks=marks,
        line=_path((mark.x, mark.y) for mark in marks),
        limits=" ".join(_steps(limit, xs, step, scale) for limit in (series.upper, series.lower)).strip(),
        x_ticks=tuple(Tick(xs[row], str(indices[row])) for row in _spaced(count, step)),
        y_ticks=scale.ticks(),
        flags=_flags(series, indices, xs),
        radius=max(1.2, min(2.6, 0.35 * step)),
        summary=_summary(series, indices),
    )


class _Scale:
    """From values to heights: linear where the sizes are alike, else logarithmic on both sides of a linear middle, so
    that zeros and negative values have their place.
    """

    def __init__(self, values: Iterable[float], limits: Iterable[float]) -> None:
        known = [limit for limit in limits if abs(limit) < _HUGE]
        finite = [*(value for value in values if abs(value) < _HUGE), *known]
        sizes = [abs(value) for value in finite if value]
        largest = max(sizes, default=1.0)
        finest = min([largest / _DECADES, *(abs(limit) / _BELOW_LIMIT for limit in known if limit)])
        smallest = max(min(sizes, default=1.0), finest)
        self._unit = smallest if largest > _LINEAR * smallest else None
        positions = [self._position(value) for value in finite] or [0.0]
        self._low = min(*positions, 0.0)
        self._span = 1.06 * (max(*positions, 0.0) - self._low) or 1.0  # a little air above the highest

    def height(self, value: float) -> float:
        if abs(value) >= _HUGE:
            return TOP if value > 0 else HEIGHT - BOTTOM
        return self._place(self._position(value))

    def ticks(self) -> tuple[Tick, ...]:
        candidates = self._decades() if self._unit else self._round_numbers()
        kept: list[Tick] = []
        for value in sorted(candidates, key=lambda value: (value != 0, -abs(value))):
            at = self._place(self._position(value))
            if TOP <= at <= HEIGHT - BOTTOM and all(abs(at - tick.at) >= _TICK_GAP for tick in kept):
                kept.append(Tick(at, _tick_label(value)))
        return tuple(kept)

    def _decades(self) -> list[float]:
        shown = self._multiples_of_powers(1)
        return [0.0, *(shown if len(shown) >= _FEW_DECADES else self._multiples_of_powers(1, 2, 5))]

    def _multiples_of_powers(self, *factors: int) -> list[float]:
        """Of ten, of either sign: those that the axis reaches, outside its linear middle."""
        sizes = [factor * 10.0**power for power in range(-320, 309) for factor in factors]
        signed = [value for size in sizes if self._unit and size >= self._unit for value in (size, -size)]
        return [value for value in signed if self._low <= self._position(value) <= self._low + self._span]

    def _round_numbers(self) -> list[float]:
        rough = self._span / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)
        first = math.ceil(self._low / step)
        return [step * (first + offset) for offset in range(7)]

    def _position(self, value: float) -> float:
        return math.asinh(value / self._unit) if self._unit else value

    def _place(self, position: float) -> float:
        return HEIGHT - BOTTOM - (position - self._low) / self._span * (HEIGHT - TOP - BOTTOM)


def _mark(series: Series, row: int, index: int, x: float, step: float, scale: _Scale) -> Mark:
    value = series.values[row]
    missing = math.isnan(value)
    limits = [limit for limit in (series.lower[row], series.upper[row]) if not math.isnan(limit)]
    limit = f" (limit {' and '.join(number(limit) for limit in limits)})" if limits else ""
    return Mark(
        x=x,
        y=math.nan if missing else scale.height(value),
        left=x - step / 2,
        width=step,
        words=f"layer {index}: {'not measured' if missing else number(value) + limit}",
        beyond=series.beyond(row),
        infinite=abs(value) >= _HUGE,
        missing=missing,
    )


def _path(points: Iterable[tuple[float, float]]) -> str:
    """Line segments through the points, interrupted where one is unknown."""
    segments = (list(run) for known, run in groupby(points, key=lambda point: not math.isnan(point[1])) if known)
    return " ".join("M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in segment) for segment in segments)


def _steps(limits: Sequence[float], xs: Sequence[float], step: float, scale: _Scale) -> str:
    edges = [
        (x + side * step / 2, math.nan if math.isnan(limit) else scale.height(limit))
        for x, limit in zip(xs, limits, strict=True)
        for side in (-1, 1)
    ]
    return _path(edges)


def _spaced(count: int, step: float) -> range:
    """Rows to label on the x axis: each, or as many as have room for three digits."""
    every = next(size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if size * step >= 24 or size == 1000)
    return range(0, count, every)


def _flags(series: Series, indices: Sequence[int], xs: Sequence[float]) -> tuple[Tick, ...]:
    def distance(row: int) -> float:
        value, upper, lower = series.values[row], series.upper[row], series.lower[row]
        return max(part for part in (value - upper, lower - value) if not math.isnan(part))

    kept: list[Tick] = []
    for row in sorted((row for row in range(len(xs)) if series.beyond(row)), key=distance, reverse=True):
        if all(abs(xs[row] - flag.at) >= _FLAG_GAP for flag in kept):
            kept.append(Tick(xs[row], str(indices[row])))
    return tuple(kept)


def _summary(series: Series, indices: Sequence[int]) -> str:
    known = [(value, index) for value, index in zip(series.values, indices, strict=True) if not math.isnan(value)]
    if not known:
        return "Not measured at any layer."
    (low, low_at), (high, high_at) = min(known), max(known)
    words = f"From {number(low)} at layer {low_at} to {number(high)} at layer {high_at}"
    beyond = [str(index) for row, index in enumerate(indices) if series.beyond(row)]
    missing = len(indices) - len(known)
    words += f"; not measured at {missing} of {len(indices)} layers" if missing else ""
    if all(math.isnan(limit) for limit in (*series.upper, *series.lower)):
        return f"{words}."
    return f"{words}; beyond the limit: {', '.join(beyond) if beyond else 'none'}."


def _tick_label(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")


def limits_in_words(series: Series) -> str:
    """The limit as a caption says it; "" where there is none."""
    ranges = []
    for limits, word in ((series.lower, "below"), (series.upper, "above")):
        known = [limit for limit in limits if not math.isnan(limit)]
        if known:
            low, high = min(known), max(known)
            ranges.append(f"{word} {number(low)}" + ("" if low == high else f" to {number(high)}, by layer"))
    if not ranges:
        return ""
    return f"{'Accuses' if series.accuses else 'Worth a look, never accuses alone:'} {' or '.join(ranges)}."
