"""What a rerun in another precision or place showed: the verdict, as data, JSON and text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from srdd.diagnose import Finding, place
from srdd.report import Report, to_json
from srdd.site_names import lies_in
from srdd.verify_fix.paired import LOSS, Comparison

SCHEMA = "srdd-verify-fix/1"

Verdict = Literal["cured", "better", "nothing to cure", "not cured", "worse"]


@dataclass(frozen=True)
class Change:
    """What was changed: `site` (or one `operator` inside it) of `layer` computed in `dtype`, on the `host` or on its
    own device. A site outside the layers has no layer.
    """

    layer: int | None
    site: str
    operator: str
    dtype: str
    host: bool

    def __str__(self) -> str:
        """For example "layer 7, model.layers.7.mlp, operator silu, in float32 on the host"."""
        operator = f", operator {self.operator}" if self.operator else ""
        layer = "" if self.layer is None else f"layer {self.layer}, "
        return f"{layer}{self.site}{operator}, in {self.dtype} on the {'host' if self.host else 'device'}"


@dataclass(frozen=True)
class Outcome:
    """The scans `before` and `after` the `change`, the task `metric` in both (None for a model without one), and how
    often the changed part ran (`calls`).
    """

    change: Change
    before: Report
    after: Report
    metric: Comparison | None
    calls: int

    @property
    def found_before(self) -> Finding | None:
        """What the scan found at the changed layer before."""
        return _at(self.before, self.change)

    @property
    def found_after(self) -> Finding | None:
        """What it found there afterwards."""
        return _at(self.after, self.change)

    @property
    def verdict(self) -> Verdict:
        """cured: the layer was at fault and no longer is. better: the task gains, whatever the scans say. worse: the
        task loses, or the change itself is at fault. not cured: the layer is still at fault. nothing to cure: it never
        was.
        """
        if (self.metric and self.metric.worse) or (self.found_after and not self.found_before):
            return "worse"
        if self.found_before and not self.found_after:
            return "cured"
        if self.metric and self.metric.better:
            return "better"
        return "not cured" if self.found_before else "nothing to cure"

    @property
    def helps(self) -> bool:
        """Whether the change is worth keeping."""
        return self.verdict in ("cured", "better")

    @property
    def advice(self) -> str:
        """What the verdict means and what to do next."""
        if self.helps and self._damaged and not self.change.operator:
            return _BY_WEIGHTS.format(self._damaged[0])
        if self.verdict == "cured":
            return _CURED_BY_HOST if self.change.host else _CURED_BY_PRECISION
        if self.verdict == "not cured":
            return _NOT_BY_HOST if self.change.host else _NOT_BY_PRECISION
        return _ADVICE[self.verdict]

    @property
    def _damaged(self) -> list[str]:
        """The weights of the changed part that differed from the checkpoint."""
        measured = self.before.measurements
        rows = [layer for layer in measured.layers if layer.index == self.change.layer] or measured.outside
        names = [damage.name for row in rows for damage in row.weights or ()]
        return [name for name in names if lies_in(name, self.change.site)]


_ADVICE: Mapping[Verdict, str] = {
    "better": "The task gains, though the scans do not tell its state before and after apart: compare their evidence.",
    "worse": "Do not keep this change.",
    "nothing to cure": "The scan had nothing against this place: name one that a finding names, or leave it as it is.",
}
_CURED_BY_PRECISION = (
    "The fault belongs to this precision's kernels: keep this place in the other until they are mended."
)
_CURED_BY_HOST = (
    "The host does not share the fault, so it is the device's; try --dtype without --host, which costs far less."
)
_BY_WEIGHTS = (
    "Its weights in device memory differed from the checkpoint ({}), and the rerun took the checkpoint's: load them "
    "again, and keep this change only if a scan still finds a fault."
)
_NOT_BY_PRECISION = "Another precision has the same fault: try --host, which no kernel of the device takes part in."
_NOT_BY_HOST = (
    "The host has the same fault, so it does not lie in what was rerun: name the whole layer, or another finding's."
)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain JSON values, both scans' reports included."""
    metric = outcome.metric
    return {
        "schema": SCHEMA,
        "verdict": outcome.verdict,
        "helps": outcome.helps,
        "advice": outcome.advice,
        "change": asdict(outcome.change),
        "calls": outcome.calls,
        "metric": None if metric is None else {**asdict(metric), **_without_infinity(metric)},
        "before": to_json(outcome.before),
        "after": to_json(outcome.after),
    }


def outcome_text(outcome: Outcome) -> str:
    """The outcome for a terminal: what was found before and after, the task metric, the verdict."""
    lines = [
        f"Rerun of {outcome.change} ({outcome.calls} calls)",
        f"  scan before  {_found(outcome.before, outcome.found_before)}",
        f"  scan after   {_found(outcome.after, outcome.found_after)}",
        f"  task         {metric_text(outcome.metric)}",
        f"VERDICT: {outcome.verdict}. {outcome.advice}",
    ]
    return "\n".join(lines)


def metric_text(metric: Comparison | None) -> str:
    """One line: the metric before and after, the change for the better with its interval, and the p-value."""
    if metric is None:
        return "none: the model does not generate text"
    shares = metric.metric != LOSS
    before, after = ((f"{value:.1%}" if shares else f"{value:.4f}") for value in (metric.before, metric.after))
    ends = (metric.gain, metric.low, metric.high)
    gain, low, high = ((f"{100 * value:+.1f}" if shares else f"{value:+.4f}") for value in ends)
    return (
        f"{metric.metric} {before} -> {after}, gain {gain}{' points' if shares else ''} "
        f"(95 % interval {low} to {high}, p = {metric.p_value:.2g}, {metric.examples} examples)"
    )


def _found(report: Report, finding: Finding | None) -> str:
    others = len(report.findings) - (finding is not None)
    elsewhere = f"; {others} more finding{'s' if others > 1 else ''} elsewhere" if others else ""
    if finding is None:
        return f"nothing there{elsewhere}"
    operator = f", operator {finding.operator}" if finding.operator else ""
    return f"{finding.site}{operator}: {finding.kind}, confidence {finding.confidence:.3f}{elsewhere}"


def _at(report: Report, change: Change) -> Finding | None:
    """The finding at the changed layer; at the changed site, or in it, where that is outside the layers."""
    layers = report.measurements.layers
    for finding in report.findings:
        if change.layer is None:
            found = lies_in(finding.site, change.site)
        else:
            found = place(finding, layers) == f"layer {change.layer}"
        if found:
            return finding
    return None


def _without_infinity(metric: Comparison) -> dict[str, float | None]:
    """The ends of the interval, None for one that is not known: JSON has no infinity."""
    return {name: value if abs(value) < 1e300 else None for name, value in (("low", metric.low), ("high", metric.high))}
