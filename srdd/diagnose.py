"""From measurements to a verdict: pure functions, no torch, so that a saved report can be judged again."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from srdd import thresholds
from srdd.classify import layer_kind, telling_site, weight_kind
from srdd.evidence import Evidence, in_common, known_differences, violating_sites, weigh
from srdd.measurements import LayerMeasurement, Measurements, SiteReplay
from srdd.site_names import OF_INPUT, lies_in
from srdd.suggest import ONLY_WHERE, describe_constant, describe_damage, describe_factor, suggestion

OUTSIDE = "outside the layers"


@dataclass(frozen=True)
class Finding:
    """One suspected fault: where (`layer`, `site`, and the `operator` inside the site, "" when it is not one of
    the catalogue's), of which `kind`, its `label` in the documents' words (SAT_SOURCE, NOISE_SOURCE, ...), how
    sure (`confidence`, 0.5 at the threshold and 1 far above it), the `evidence`, strongest first, and what to
    try next.
    """

    rank: int
    layer: int
    site: str
    operator: str
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
    common = in_common(measurements.layers)
    known = dict(measurements.known)
    rows = (*measurements.layers, *measurements.outside)
    weighed = [weigh(row, common, known) for row in rows]
    accused = [
        (row, [entry for entry in evidence if entry.excess > 1])
        for row, evidence in zip(rows, weighed, strict=True)
        if evidence and evidence[0].excess > 1
    ]
    accused = [entry for entry in accused if not _explained(entry[0], accused)]
    spoilt = [layer for layer in _spoilt_inputs(measurements) if not _source_is_known(layer, accused)]
    accused = [*((layer, [Evidence("finite", math.inf, 1.0)]) for layer in spoilt), *accused]
    accused.sort(key=lambda entry: -entry[1][0].excess)
    findings = tuple(_finding(rank, layer, alarms, known) for rank, (layer, alarms) in enumerate(accused, start=1))
    inside = [finding for finding, (row, _) in zip(findings, accused, strict=True) if row.is_layer]
    scores = tuple(evidence[0].excess if evidence else 0.0 for evidence in weighed[: len(measurements.layers)])
    return Diagnosis(findings, _labels(measurements, inside), scores, _notes(measurements, common.carries_stream))


def place(finding: Finding, layers: Sequence[LayerMeasurement]) -> str:
    """Where a finding is, in words: "layer 7", or "outside the layers"."""
    layer = next((row.site for row in layers if row.index == finding.layer), "")
    site = finding.site.removeprefix(OF_INPUT)
    return f"layer {finding.layer}" if lies_in(site, layer) else OUTSIDE


def kurtosis_edges(layers: Sequence[LayerMeasurement]) -> list[float]:
    """The documents' `drop_z`: first difference of log kurtosis over layers, in robust z (median and scaled
    median absolute deviation); 0 for the first layer and where kurtosis is unknown. Adding 3 keeps the
    logarithm defined for flat distributions.
    """
    logs = [math.log(max(layer.shape.kurtosis + 3, 1e-6)) if layer.shape else math.nan for layer in layers]
    steps = [math.nan] + [after - before for before, after in pairwise(logs)]
    known = [step for step in steps if math.isfinite(step)]
    if len(known) < 3:
        return [0.0] * len(steps)
    centre = median(known)
    spread = 1.4826 * median(abs(step - centre) for step in known)
    return [(step - centre) / max(spread, 1e-9) if math.isfinite(step) else 0.0 for step in steps]


def _explained(row: LayerMeasurement, accused: Sequence[tuple[LayerMeasurement, list[Evidence]]]) -> bool:
    """Whether a layer only seems at fault for what it was given, by something outside the layers that is accused:
    replay, which knows what it was given, has nothing against it, and the probes met it at each of their runs, or its
    values overflowed.
    """
    if not row.replay or violating_sites(row):
        return False
    outside = [entry for entry, _ in accused if not entry.is_layer]
    altered = any(site.site == f"{OF_INPUT}{row.site}" for entry in outside for site in violating_sites(entry))
    spoilt = row.finite_input and not row.finite_output and any(entry.index <= row.index for entry in outside)
    return altered or spoilt


def _source_is_known(layer: LayerMeasurement, accused: Sequence[tuple[LayerMeasurement, list[Evidence]]]) -> bool:
    """Whether something outside the layers is accused of what this one was given."""
    return any(row.index == layer.index and not row.is_layer for row, _ in accused)


def _spoilt_inputs(measurements: Measurements) -> list[LayerMeasurement]:
    """The layers that were given values that are not finite although the layer before returned finite ones."""
    layers = measurements.layers
    sound = [True, *(layer.finite_output for layer in layers)]
    return [layer for layer, before in zip(layers, sound, strict=False) if before and not layer.finite_input]


def _finding(rank: int, layer: LayerMeasurement, alarms: list[Evidence], known: Collection[str]) -> Finding:
    failed = _sources(violating_sites(layer, known)) if layer.finite_input else []
    damaged = max(layer.weights or (), key=lambda damage: damage.elements, default=None)
    if damaged is None:
        probes = {entry.probe for entry in alarms}
        site, operator = _place(layer, probes, failed)
        kind = layer_kind(layer, probes, failed)
        detail = _detail(kind, layer, failed)
    else:
        site, operator, detail = damaged.name.rpartition(".")[0], "", describe_damage(damaged)
        kind = weight_kind(damaged)
    return Finding(
        rank=rank,
        layer=layer.index,
        site=site,
        operator=operator,
        kind=kind,
        label=_label(kind, layer),
        confidence=1 - 0.5 / alarms[0].excess,
        evidence=tuple(alarms),
        suggestion=suggestion(kind, layer.index, site, detail, damaged is not None, outside=not layer.is_layer),
    )


def _detail(kind: str, layer: LayerMeasurement, failed: Sequence[SiteReplay]) -> str:
    """What is known of the fault beyond its kind."""
    site = telling_site(layer, failed)
    if site is None:
        return ""
    if failed and site.excitation in ONLY_WHERE:
        return ONLY_WHERE[site.excitation]
    if kind == "wrong_constant" and site.constant:
        return describe_constant(site.constant)
    return describe_factor(site.factor) if kind == "scale" and not math.isnan(site.factor) else ""


def _sources(failed: list[SiteReplay]) -> list[SiteReplay]:
    """Those that failed on sound values, where there are any: what kernels make of NaN or of overflow is their own
    affair.
    """
    return [site for site in failed if not site.poisoned] or failed


def _place(layer: LayerMeasurement, probes: Collection[str], failed: list[SiteReplay]) -> tuple[str, str]:
    """The module at fault and the operator inside it. One operator that fails in several modules is at fault in
    what contains them all.
    """
    if not layer.finite_input:
        return f"{OF_INPUT}{layer.site}", ""
    if not failed and layer.kv_cache and probes == {"kv_cache"}:
        return f"{layer.site}.kv_cache", ""
    if not failed and layer.checksum and probes == {"checksum"}:
        return layer.checksum.site, "linear"
    if not failed:
        leaning = layer.leaning
        leans = leaning if leaning and leaning.drift > thresholds.DRIFT else None
        return (leans.site, leans.operator) if leans else (layer.site, "")
    operators = [entry for entry in failed if entry.operator]
    if operators and len({entry.operator for entry in operators}) == 1:
        return _common_site([entry.site for entry in operators]), operators[0].operator
    modules = [entry.site for entry in failed if not entry.operator]
    return modules[0] if modules else _common_site([entry.site for entry in operators]), ""


def _common_site(sites: list[str]) -> str:
    first, *others = [site.split(".") for site in dict.fromkeys(sites)]
    if not others:
        return sites[0]
    shared = 0
    while all(len(other) > shared and other[shared] == first[shared] for other in others):
        shared += 1
    return ".".join(first[:shared])


def _label(kind: str, layer: LayerMeasurement) -> str:
    if kind == "saturation":
        transfer = layer.pass_through.transfer if layer.pass_through else None
        sparse = transfer is not None and 0 < 2 * transfer.units < transfer.width
        return "DISCRETE_SAT" if sparse and layer.gain and layer.gain.discrete else "SAT_SOURCE"
    return {
        "dead_zone": "DEAD_ZONE",
        "noise": "NOISE_SOURCE",
        "spike": "NOISE_SOURCE",
        "non_determinism": "NOISE_SOURCE",
    }.get(kind, f"{kind.upper()}_SOURCE")


def _labels(measurements: Measurements, findings: Sequence[Finding]) -> tuple[str, ...]:
    """The label of each layer: its finding's, "NON_FINITE_PROP" behind a non-finite source, "SAT_PROP" behind a
    saturation where the edge is still piled up, "ok" otherwise.
    """
    labels = {finding.layer: finding.label for finding in findings}
    first = min((finding.layer for finding in findings if finding.kind == "saturation"), default=None)
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
    notes = list(measurements.notes)
    probed = any(layer.finite_input and layer.finite_output for layer in measurements.layers)
    if probed and not carries and "pass_through" in measurements.probes:
        notes.append(
            "pass-through does not apply: these layers do not return their input plus a bounded update "
            "(post-norm blocks, scaled residuals, several streams)"
        )
    known = dict(measurements.known)
    differing = known_differences((*measurements.layers, *measurements.outside), known)
    notes.extend(f"operator {name} differs, as is known of this backend: {known[name]}" for name in differing)
    return tuple(notes)
