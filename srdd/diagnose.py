"""From measurements to a verdict: pure functions, no torch, so that a saved report can be judged again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from scipy import stats

from srdd import thresholds
from srdd.classify import pass_through_kind, stability_kind
from srdd.measurements import LayerMeasurement, Measurements, PassThrough, Shape
from srdd.suggest import suggestion


@dataclass(frozen=True)
class Evidence:
    """One probe's `statistic` beside the `threshold` above which it counts."""

    probe: str
    statistic: float
    threshold: float

    @property
    def excess(self) -> float:
        """The statistic in units of its threshold."""
        return self.statistic / self.threshold


@dataclass(frozen=True)
class Finding:
    """One suspected fault: where (`layer`, `site`), of which `kind`, its `label` in the documents' words
    (SAT_SOURCE, NOISE_SOURCE, ...), how sure (`confidence`, 0.5 at the threshold and 1 far above it), the
    `evidence`, strongest first, and what to try next.
    """

    rank: int
    layer: int
    site: str
    kind: str
    label: str
    confidence: float
    evidence: tuple[Evidence, ...]
    suggestion: str


@dataclass(frozen=True)
class Diagnosis:
    """The ranked `findings`, a `label` and a `score` (strongest excess, below 1 when healthy) for each layer,
    and `notes` on probes that could not be applied.
    """

    findings: tuple[Finding, ...]
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Either "healthy" or "faulty"."""
        return "faulty" if self.findings else "healthy"


def diagnose(measurements: Measurements) -> Diagnosis:
    """Judge every layer by the probes that apply to this architecture, rank what is found and label the rest.
    Each probe is local to its layer, so a fault does not make findings of the layers behind it.
    """
    carries = carries_stream(measurements.layers)
    suspects = [_suspect(layer, carries) for layer in measurements.layers]
    scores = [_score(alarms) for _, alarms in suspects]
    found = [
        (layer, kind, tuple(sorted(alarms, key=lambda entry: -entry.excess)))
        for layer, (kind, alarms) in zip(measurements.layers, suspects, strict=True)
        if kind is not None
    ]
    found.sort(key=lambda entry: (entry[1] != "non_finite", -entry[2][0].excess))
    findings = tuple(_finding(rank, *entry) for rank, entry in enumerate(found, start=1))
    return Diagnosis(findings, _labels(measurements, findings), tuple(scores), _notes(measurements, carries))


def carries_stream(layers: Sequence[LayerMeasurement]) -> bool:
    """Whether this architecture's layers pass their input through, so that the pass-through probe may accuse:
    at least half of the layers do so without any violation, or most carry it at full size, yet damaged in
    ways no architecture has.
    """
    measured = [layer.pass_through for layer in layers if layer.pass_through is not None]
    if not measured:
        return False
    clean = [entry for entry in measured if entry.violation <= thresholds.PASS_THROUGH]
    if 2 * len(clean) >= len(measured):
        return True
    damaged = [entry for entry in measured if _carries_damaged(entry)]
    return 2 * (len(clean) + len(damaged)) > len(measured)


def kurtosis_edges(layers: Sequence[LayerMeasurement]) -> list[float]:
    """The documents' `drop_z`: first difference of log kurtosis over layers, in robust z (median and scaled
    median absolute deviation); 0 for the first layer and where kurtosis is unknown. Adding 3 keeps the
    logarithm defined for flat distributions.
    """
    logs = [math.log(max(layer.shape.kurtosis + 3, 1e-6)) if layer.shape else math.nan for layer in layers]
    steps = [0.0] + [after - before for before, after in pairwise(logs)]
    known = [step for step in steps[1:] if math.isfinite(step)]
    if len(known) < 3:
        return [0.0] * len(steps)
    centre = median(known)
    spread = 1.4826 * median(abs(step - centre) for step in known)
    return [(step - centre) / max(spread, 1e-9) if math.isfinite(step) else 0.0 for step in steps]


def _carries_damaged(entry: PassThrough) -> bool:
    return entry.growth > thresholds.CARRIES_STREAM and pass_through_kind(entry) != "scale"


def _suspect(layer: LayerMeasurement, carries: bool) -> tuple[str | None, list[Evidence]]:
    """The kind of fault at one layer, None for a healthy one, and the evidence weighed."""
    if not layer.finite_output or not layer.finite_input:
        source = layer.finite_input or layer.index == 0
        return ("non_finite", [Evidence("finite", math.inf, 1.0)]) if source else (None, [])
    weighed = [*_stability_evidence(layer), *_pass_through_evidence(layer, carries), *_shape_evidence(layer)]
    alarms = [entry for entry in weighed if entry.excess > 1]
    if not alarms:
        return None, weighed
    return _kind(layer, {entry.probe for entry in alarms}), alarms


def _kind(layer: LayerMeasurement, probes: set[str]) -> str:
    if layer.stability and probes & {"instability", "instability_element"}:
        return stability_kind(layer.stability)
    if layer.pass_through and "pass_through" in probes:
        return pass_through_kind(layer.pass_through)
    return "saturation" if "multiplicity" in probes else "dead_zone"


def _stability_evidence(layer: LayerMeasurement) -> list[Evidence]:
    if layer.stability is None:
        return []
    return [
        Evidence("instability", layer.stability.unit, thresholds.UNSTABLE_UNIT),
        Evidence("instability_element", layer.stability.element, thresholds.UNSTABLE_ELEMENT),
    ]


def _pass_through_evidence(layer: LayerMeasurement, carries: bool) -> list[Evidence]:
    if layer.pass_through is None or not carries:
        return []
    return [Evidence("pass_through", layer.pass_through.violation, thresholds.PASS_THROUGH)]


def _shape_evidence(layer: LayerMeasurement) -> list[Evidence]:
    if layer.shape is None:
        return []
    return [
        Evidence("multiplicity", float(layer.shape.ties), tie_limit(layer.shape.ties_expected)),
        Evidence("zeros", float(layer.shape.zeros), _zero_limit(layer.shape)),
    ]


def tie_limit(expected: float) -> float:
    """The number of equal maxima, the maximum itself included, that chance exceeds with probability
    TIE_PROBABILITY at most (Poisson).
    """
    return 1.0 + max(2.0, float(stats.poisson.isf(thresholds.TIE_PROBABILITY, expected)))


def _zero_limit(shape: Shape) -> float:
    return max(float(shape.small), thresholds.ZERO_SHARE * shape.elements, 1.0)


def _score(evidence: list[Evidence]) -> float:
    return max((entry.excess for entry in evidence), default=0.0)


def _finding(rank: int, layer: LayerMeasurement, kind: str, evidence: tuple[Evidence, ...]) -> Finding:
    confidence = 1 - 0.5 / evidence[0].excess
    site = layer.site if layer.finite_input else f"input of {layer.site}"
    return Finding(
        rank,
        layer.index,
        site,
        kind,
        _label(kind, layer),
        confidence,
        evidence,
        suggestion(kind, layer.index, site),
    )


def _label(kind: str, layer: LayerMeasurement) -> str:
    if kind == "saturation":
        sparse = layer.pass_through is not None and 2 * layer.pass_through.units < _width(layer)
        return "DISCRETE_SAT" if sparse and layer.gain and layer.gain.discrete else "SAT_SOURCE"
    return {
        "dead_zone": "DEAD_ZONE",
        "noise": "NOISE_SOURCE",
        "spike": "NOISE_SOURCE",
        "non_determinism": "NOISE_SOURCE",
    }.get(kind, f"{kind.upper()}_SOURCE")


def _width(layer: LayerMeasurement) -> int:
    return max(layer.pass_through.width, 1) if layer.pass_through else 1


def _labels(measurements: Measurements, findings: Sequence[Finding]) -> tuple[str, ...]:
    """The label of each layer: its finding's, "NON_FINITE_PROP" behind a non-finite source, "SAT_PROP" behind
    a saturation where the edge is still piled up, "ok" otherwise.
    """
    labels = {finding.layer: finding.label for finding in findings}
    saturated = [finding.layer for finding in findings if finding.kind == "saturation"]
    first = min(saturated, default=None)
    result = []
    for layer in measurements.layers:
        piled = layer.shape is not None and layer.shape.pile_up > thresholds.PILE_UP
        if layer.index in labels:
            result.append(labels[layer.index])
        elif not layer.finite_input:
            result.append("NON_FINITE_PROP")
        elif first is not None and layer.index > first and piled:
            result.append("SAT_PROP")
        else:
            result.append("ok")
    return tuple(result)


def _notes(measurements: Measurements, carries: bool) -> tuple[str, ...]:
    notes = []
    probed = [layer for layer in measurements.layers if layer.pass_through is not None]
    if probed and not carries:
        notes.append(
            "pass-through does not apply: these layers do not return their input plus a bounded update "
            "(post-norm blocks, scaled residuals); dense bias and sparse faults need --level full"
        )
    unvisited = [layer for layer in measurements.layers if layer.finite_input and layer.stability is None]
    if unvisited and all(layer.finite_output for layer in unvisited):
        notes.append(f"{len(unvisited)} layers were not probed")
    return tuple(notes)
