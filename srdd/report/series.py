"""Every statistic of a report as a series over the layers, beside its limit: what a page plots and tabulates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from srdd import thresholds
from srdd.diagnose import kurtosis_edges
from srdd.evidence import Evidence, in_common, weigh
from srdd.measurements import LayerMeasurement
from srdd.report.model import Report

NAN = math.nan


@dataclass(frozen=True)
class Series:
    """One statistic: a value per layer (NaN where it was not measured, infinite where it has no size), the `upper` and
    `lower` limit there (NaN where there is none), and whether going beyond a limit `accuses` the layer or is a mere
    remark.
    """

    name: str
    title: str
    about: str
    values: tuple[float, ...]
    upper: tuple[float, ...]
    lower: tuple[float, ...]
    accuses: bool

    def beyond(self, row: int) -> bool:
        """Whether the value of `row` is outside its limits; one that was not measured is not."""
        value = self.values[row]
        return value > self.upper[row] or value < self.lower[row]


def series_of(report: Report) -> list[Series]:
    """The score, the evidence of every probe that weighed in, and the documents' statistics; those that no layer has
    are left out.
    """
    layers = report.measurements.layers
    scores = Series("score", *_WORDS["score"], report.diagnosis.scores, *_limits(len(layers), 1.0), accuses=True)
    return [scores, *_evidence_series(report), *_documents_series(layers)]


def _evidence_series(report: Report) -> list[Series]:
    layers = report.measurements.layers
    common = in_common(layers)
    known = dict(report.measurements.known)
    weighed = [{entry.probe: entry for entry in weigh(layer, common, known)} for layer in layers]
    probes = dict.fromkeys(probe for row in weighed for probe in row)
    order = [*(name for name in _WORDS if name in probes), *(name for name in probes if name not in _WORDS)]
    return [_one_probe(probe, [row.get(probe) for row in weighed]) for probe in order]


def _one_probe(probe: str, entries: Sequence[Evidence | None]) -> Series:
    title, about = _WORDS.get(probe, (probe.replace("_", " ").capitalize(), ""))
    return Series(
        name=probe,
        title=title,
        about=about,
        values=tuple(entry.statistic if entry else NAN for entry in entries),
        upper=tuple(entry.threshold if entry else NAN for entry in entries),
        lower=(NAN,) * len(entries),
        accuses=True,
    )


def _documents_series(layers: Sequence[LayerMeasurement]) -> list[Series]:
    found = []
    for name, value in _DOCUMENTS.items():
        values = tuple(value(layer) for layer in layers)
        if any(not math.isnan(entry) for entry in values):
            found.append(_remark(name, values))
    edges = kurtosis_edges(layers)
    if any(edges):
        found.append(
            _remark("drop_z", tuple(edge if layer.shape else NAN for edge, layer in zip(edges, layers, strict=True)))
        )
    return found


def _remark(name: str, values: tuple[float, ...]) -> Series:
    upper, lower = _RULES.get(name, (NAN, NAN))
    if name == "gain":
        lower = thresholds.GAIN_SHARE_OF_MEDIAN * median([entry for entry in values if math.isfinite(entry)] or [NAN])
    return Series(name, *_WORDS[name], values, *_limits(len(values), upper, lower), accuses=False)


def _limits(count: int, upper: float, lower: float = NAN) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (upper,) * count, (lower,) * count


_DOCUMENTS: dict[str, Callable[[LayerMeasurement], float]] = {
    "spread": lambda layer: layer.stability.spread if layer.stability else NAN,
    "gain": lambda layer: layer.gain.gain if layer.gain else NAN,
    "min_gain": lambda layer: layer.gain.lowest if layer.gain else NAN,
    "max_gain": lambda layer: layer.gain.highest if layer.gain else NAN,
    "discrete": lambda layer: float(layer.gain.discrete) if layer.gain else NAN,
    "kurtosis": lambda layer: layer.shape.kurtosis if layer.shape else NAN,
    "pile_up": lambda layer: layer.shape.pile_up if layer.shape else NAN,
}
_RULES = {
    "pile_up": (thresholds.PILE_UP, NAN),
    "drop_z": (thresholds.KURTOSIS_EDGE, -thresholds.KURTOSIS_EDGE),
}
_WORDS = {
    "score": ("Score", "The strongest evidence over its limit: 1 or more is a finding."),
    "finite": ("Finite values", "Infinite where NaN or infinity appears first."),
    "replay": ("Host replay", "Largest difference from the host's result, over what rounding may do."),
    "rounding_drift": (
        "Rounding drift",
        "How far values lean one way, or lack a last bit, in units of what chance allows.",
    ),
    "checksum": ("Checksum", "Row sums of matrix products against what they must be, over what rounding may do."),
    "subnormals": ("Flushed numbers", "Subnormal results of the layer's own sums that came back as zero."),
    "kv_cache": ("Key-value cache", "Units that come back from the cache otherwise than they were stored."),
    "weights": ("Weights", "Elements in device memory that differ from the checkpoint."),
    "pass_through": ("Pass-through", "Largest change of an amplified input that no rounding explains."),
    "instability": ("Instability, by unit", "Run-to-run differences of the worst hidden unit, in rounding errors."),
    "instability_element": ("Instability, by element", "The largest run-to-run difference, in rounding errors."),
    "multiplicity": ("Equal maxima", "Elements that equal the largest magnitude exactly."),
    "zeros": ("Exact zeros", "Elements that are exactly zero, against small values that are not."),
    "spread": ("Run-to-run spread", "Standard deviation of the difference between runs, as a share of the output's."),
    "gain": ("Gain", "Change of the output for a small change of the input; near 0 in a dead zone."),
    "min_gain": ("Min gain", "Smallest shift under an offset, as a share of it; 1 where the input is carried."),
    "max_gain": ("Max gain", "Largest shift under an offset, as a share of it."),
    "discrete": ("Stuck units", "Hidden units that do not follow an offset."),
    "kurtosis": ("Kurtosis", "Of the layer's output; a clamp lowers it."),
    "drop_z": ("Kurtosis edge, drop_z", "Step of log kurtosis from the layer before, in robust standard deviations."),
    "pile_up": ("Pile-up", "Outermost histogram bin against those inside it."),
}
