"""The report as engineers read it in a terminal: a table by layer, a block of statistics, the verdict."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from srdd import thresholds
from srdd.diagnose import Finding, kurtosis_edges, place
from srdd.measurements import LayerMeasurement
from srdd.report.model import Report
from srdd.report.number import number
from srdd.trials import describe_trials, trials_of

_COLUMNS = (
    "layer",
    "score",
    "instability",
    "gain",
    "min gain",
    "max gain",
    "stuck",
    "kurtosis",
    "drop_z",
    "pile-up",
    "replay",
)
_WIDTH = 120  # the table's own: in a narrower terminal it wraps the lines, but no number is cut off


def render_text(report: Report) -> RenderableType:
    """The whole report, for a rich console."""
    return Group(*_header(report), _layer_table(report), *_statistics(report), *_verdict(report))


def print_report(report: Report, console: Console) -> None:
    """Print the whole report, widening `console` where it is narrower than the table."""
    console.width = max(console.width, _WIDTH)
    console.print(render_text(report))


def _header(report: Report) -> list[RenderableType]:
    about = report.measurements
    return [
        Text(f"SRDD scan of {Path(report.model).name}", style="bold"),
        Text(
            f"backend {report.backend} ({report.environment.get('device_name', '?')}), {about.dtype}, "
            f"level {report.level}, {len(about.layers)} layers x {about.hidden} units, {about.tokens} tokens"
        ),
    ]


def _layer_table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("diagnosis", no_wrap=True)
    edges = kurtosis_edges(report.measurements.layers)
    diagnosis = report.diagnosis
    for row, layer in enumerate(report.measurements.layers):
        label = diagnosis.labels[row]
        style = (
            "" if label == "ok" else "bold red" if any(f.layer == layer.index for f in report.findings) else "yellow"
        )
        table.add_row(*_cells(layer, diagnosis.scores[row], edges[row]), label, style=style)
    return table


def _cells(layer: LayerMeasurement, score: float, edge: float) -> list[str]:
    stability, gain, shape = layer.stability, layer.gain, layer.shape
    return [
        str(layer.index),
        number(score),
        number(stability.spread if stability else math.nan),
        number(gain.gain if gain else math.nan),
        number(gain.lowest if gain else math.nan),
        number(gain.highest if gain else math.nan),
        str(gain.discrete) if gain else "-",
        number(shape.kurtosis if shape else math.nan),
        number(edge if shape else math.nan),
        number(shape.pile_up if shape else math.nan),
        number(max((site.transfer.violation for site in layer.replay), default=0.0) if layer.replay else math.nan),
    ]


def _statistics(report: Report) -> list[RenderableType]:
    layers = report.measurements.layers
    lines = ["", "Statistics (median over layers, and the documents' rule)"]
    gains = [layer.gain.gain for layer in layers if layer.gain and math.isfinite(layer.gain.gain)]
    kurtoses = [layer.shape.kurtosis for layer in layers if layer.shape]
    piles = [layer.shape.pile_up for layer in layers if layer.shape]
    if gains:
        limit = thresholds.GAIN_SHARE_OF_MEDIAN * median(gains)
        low = sum(gain < limit for gain in gains)
        lines.append(
            f"  gain      {number(median(gains)):>8}   {low} layers below {thresholds.GAIN_SHARE_OF_MEDIAN} of it"
        )
    if kurtoses:
        sharp = sum(abs(edge) > thresholds.KURTOSIS_EDGE for edge in kurtosis_edges(layers))
        edge = f"{sharp} edges with |drop_z| above {thresholds.KURTOSIS_EDGE:g}"
        lines.append(f"  kurtosis  {number(median(kurtoses)):>8}   {edge}")
        piled = sum(pile > thresholds.PILE_UP for pile in piles)
        lines.append(f"  pile-up   {number(median(piles)):>8}   {piled} layers above {thresholds.PILE_UP}")
    cost = report.cost
    memory = f", peak memory {cost.peak_memory_bytes / 2**20:.0f} MiB" if cost.peak_memory_bytes else ""
    lines.append(f"  cost      {cost.forward_equivalents:8.2f}   forward equivalents, {cost.wall_s:.1f} s{memory}")
    if trials := trials_of(report.measurements):
        lines.append(f"  trials    {trials:8d}   {describe_trials(trials, report.level == 'full')}")
    lines.extend(f"  note      {note}" for note in report.diagnosis.notes)
    return [Text("\n".join(lines))]


def _verdict(report: Report) -> list[RenderableType]:
    if not report.findings:
        return [Text("\nVERDICT: healthy", style="bold green")]
    layers = report.measurements.layers
    lines = [_finding_line(finding, place(finding, layers)) for finding in report.findings]
    return [Text("\nVERDICT: faulty", style="bold red"), *lines]


def _finding_line(finding: Finding, where: str) -> RenderableType:
    evidence = ", ".join(
        f"{entry.probe} {number(entry.statistic)} (limit {number(entry.threshold)})" for entry in finding.evidence
    )
    operator = f", operator {finding.operator}" if finding.operator else ""
    return Text(
        f"{finding.rank}. {where}, {finding.site}{operator}: {finding.kind} [{finding.label}], "
        f"confidence {finding.confidence:.3f}\n   evidence: {evidence}\n   {finding.suggestion}"
    )
