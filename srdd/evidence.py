"""Weigh the measurements of one layer: each probe's statistic beside its threshold."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scipy import stats

from srdd import thresholds
from srdd.classify import transfer_kind
from srdd.measurements import LayerMeasurement, PassThrough, Shape, SiteReplay


@dataclass(frozen=True)
class Evidence:
    """One probe's `statistic` beside the `threshold` above which it counts."""

    probe: str
    statistic: float
    threshold: float

    @property
    def excess(self) -> float:
        """The statistic in units of its threshold; 0 for one that is not a number, which accuses nobody."""
        return 0.0 if math.isnan(self.statistic) else self.statistic / self.threshold


# What a block without a bounded update does to an amplified input in every layer, as no fault of few kinds would.
_ARCHITECTURAL = ("scale", "corruption")


@dataclass(frozen=True)
class Common:
    """What most layers of a model do: `carries_stream`, so that the pass-through probe may accuse one that does not,
    and `keeps_subnormals`.
    """

    carries_stream: bool
    keeps_subnormals: bool


def in_common(layers: Sequence[LayerMeasurement]) -> Common:
    """What these layers of one model have in common."""
    return Common(carries_stream(layers), keeps_subnormals(layers))


def weigh(layer: LayerMeasurement, common: Common, known: Collection[str] = ()) -> list[Evidence]:
    """Everything that speaks for or against a fault at `layer`, strongest first. `common` is what the model's layers
    have in common, `known` which operators differ on this backend for a reason.
    """
    if layer.finite_input and not layer.finite_output:
        return [Evidence("finite", math.inf, 1.0), *_replay_evidence(layer, known), *_weight_evidence(layer)]
    weighed = [
        *_stability_evidence(layer),
        *_pass_through_evidence(layer, common.carries_stream),
        *_shape_evidence(layer),
        *_cache_evidence(layer),
        *_checksum_evidence(layer),
        *_subnormal_evidence(layer, common.keeps_subnormals),
        *_replay_evidence(layer, known),
        *_weight_evidence(layer),
    ]
    return sorted(weighed, key=lambda entry: -entry.excess)


def carries_stream(layers: Sequence[LayerMeasurement]) -> bool:
    """Whether this architecture's layers pass their input through, so that the pass-through probe may accuse:
    at least half of the layers do so without any violation, or most carry it at full size, yet damaged in ways
    no architecture has.
    """
    measured = [layer.pass_through for layer in layers if layer.pass_through is not None]
    if not measured:
        return False
    clean = [entry for entry in measured if entry.transfer.violation <= thresholds.PASS_THROUGH]
    if 2 * len(clean) >= len(measured):
        return True
    damaged = [entry for entry in measured if entry not in clean and _carries_damaged(entry)]
    return 2 * (len(clean) + len(damaged)) > len(measured)


def keeps_subnormals(layers: Sequence[LayerMeasurement]) -> bool:
    """Whether at least half of the layers that were asked keep every subnormal number: kernels that flush them are no
    fault, and would do so in all layers.
    """
    asked = [layer.subnormals for layer in layers if layer.subnormals is not None]
    return 2 * sum(entry.flushed > 0 for entry in asked) <= len(asked)


def tie_limit(expected: float) -> float:
    """The number of equal maxima, the maximum itself included, that chance exceeds with probability
    TIE_PROBABILITY at most (Poisson).
    """
    return 1.0 + max(2.0, float(stats.poisson.isf(thresholds.TIE_PROBABILITY, expected)))


def violating_sites(layer: LayerMeasurement, known: Collection[str] = ()) -> list[SiteReplay]:
    """The replayed sites that differ by more than rounding, worst first. A module in which nothing but operators
    `known` to differ on this backend fails is explained by them and left out.
    """
    failed = [site for site in layer.replay or () if site.transfer.violation > thresholds.REPLAY]
    explained = {entry.site for entry in failed if entry.operator in known}
    explained -= {entry.site for entry in failed if entry.operator and entry.operator not in known}
    return sorted(
        (entry for entry in failed if entry.site not in explained), key=lambda entry: -entry.transfer.violation
    )


def known_differences(layers: Sequence[LayerMeasurement], known: Collection[str]) -> list[str]:
    """The operators `known` to differ that did differ in some layer."""
    seen = {
        site.operator
        for layer in layers
        for site in layer.replay or ()
        if site.operator in known and site.transfer.violation > thresholds.REPLAY
    }
    return sorted(seen)


def _carries_damaged(entry: PassThrough) -> bool:
    return entry.growth > thresholds.CARRIES_STREAM and transfer_kind([entry.transfer]) not in _ARCHITECTURAL


def _stability_evidence(layer: LayerMeasurement) -> list[Evidence]:
    if layer.stability is None:
        return []
    return [
        Evidence("instability", layer.stability.unit, thresholds.UNSTABLE_UNIT),
        Evidence("instability_element", layer.stability.element, thresholds.UNSTABLE_ELEMENT),
    ]


def _pass_through_evidence(layer: LayerMeasurement, carries: bool) -> list[Evidence]:
    if layer.pass_through is None or not carries or _replay_acquits(layer):
        return []
    return [Evidence("pass_through", layer.pass_through.transfer.violation, thresholds.PASS_THROUGH)]


def _replay_acquits(layer: LayerMeasurement) -> bool:
    """Whether replay, which followed the layer on the same amplified input, knows every value to be right: then it is
    the architecture that passes its input on differently here (a first block without a norm).
    """
    whole = any(site.site == layer.site and not site.operator for site in layer.replay or ())
    return whole and not violating_sites(layer)


def _shape_evidence(layer: LayerMeasurement) -> list[Evidence]:
    if layer.shape is None:
        return []
    return [
        Evidence("multiplicity", float(layer.shape.ties), tie_limit(layer.shape.ties_expected)),
        Evidence("zeros", float(layer.shape.zeros), _zero_limit(layer.shape)),
    ]


def _cache_evidence(layer: LayerMeasurement) -> list[Evidence]:
    if layer.kv_cache is None:
        return []
    return [Evidence("kv_cache", float(layer.kv_cache.transfer.units), thresholds.CACHE_UNITS)]


def _checksum_evidence(layer: LayerMeasurement) -> list[Evidence]:
    if layer.checksum is None:
        return []
    return [Evidence("checksum", layer.checksum.residual, thresholds.CHECKSUM)]


def _subnormal_evidence(layer: LayerMeasurement, keeps: bool) -> list[Evidence]:
    """Of a layer whose larger numbers are right: what zeroes those too is no flush."""
    if layer.subnormals is None or not keeps or violating_sites(layer):
        return []
    return [Evidence("subnormals", float(layer.subnormals.flushed), thresholds.FLUSHED)]


def _zero_limit(shape: Shape) -> float:
    return max(float(shape.small), thresholds.ZERO_SHARE * shape.elements, 1.0)


def _replay_evidence(layer: LayerMeasurement, known: Collection[str]) -> list[Evidence]:
    if layer.replay is None:
        return []
    failed = violating_sites(layer, known)
    passed = [site for site in layer.replay if site.transfer.violation <= thresholds.REPLAY]
    worst = max((site.transfer.violation for site in failed or passed), default=0.0)
    weighed = [Evidence("replay", worst, thresholds.REPLAY)]
    if layer.leaning is None:
        return weighed
    return [*weighed, Evidence("rounding_drift", layer.leaning.drift, thresholds.DRIFT)]


def _weight_evidence(layer: LayerMeasurement) -> list[Evidence]:
    if layer.weights is None:
        return []
    return [Evidence("weights", float(sum(damage.elements for damage in layer.weights)), thresholds.WEIGHT_ELEMENTS)]
