"""Are a student's losses in proportion? Decided from plain numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

SCHEMA: Final = "distill-diagnosis/1"


@dataclass(frozen=True)
class Proportion:
    """The documents' rule for one loss: its share of the total should lie between `low` and `high`; outside, a weight
    is advised that gives it `raised` or `lowered`.
    """

    title: str
    low: float
    high: float
    raised: float
    lowered: float


PROPORTIONS: Final = {
    "kv": Proportion("keys and values", 0.05, 0.50, raised=0.10, lowered=0.30),
    "cka": Proportion("CKA", 0.01, 0.15, raised=0.05, lowered=0.10),
}
EFFECT: Final = (0.05, 0.30)  # of attention weighting on the loss of keys and values


@dataclass(frozen=True)
class Scale:
    """One loss over the batches: mean and standard deviation (n - 1; 0 for one batch), its `weight`, and its `share` of
    the total, None for a loss that is only reported.
    """

    mean: float
    std: float
    weight: float
    share: float | None


@dataclass(frozen=True)
class Diagnosis:
    """The `scales` of the losses by name; `attention_effect`, by what share of itself attention weighting changes the
    loss of keys and values (None without); and `advice`, one sentence for each thing to change.
    """

    scales: dict[str, Scale]
    attention_effect: float | None
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema": SCHEMA, **asdict(self), "advice": list(self.advice)}


def diagnose(samples: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> Diagnosis:
    """Judge losses, by name one number a batch, under `weights`; "ce" counts 1. Where there is "kv_weighted", the loss
    of keys and values by attention, it stands in the total for "kv", which is then only reported.
    """
    used = "kv_weighted" if "kv_weighted" in samples else "kv"
    means = {name: statistics.fmean(values) for name, values in samples.items()}
    weight = {"ce": 1.0, **weights, "kv_weighted": weights.get("kv", 0.0)}
    parts = {name: weight.get(name, 0.0) * mean for name, mean in means.items() if name != "kv" or used == "kv"}
    total = math.fsum(parts.values())
    scales = {
        name: Scale(
            mean,
            _spread(samples[name]),
            weight.get(name, 0.0),
            parts[name] / total if name in parts and total else None,
        )
        for name, mean in means.items()
    }
    effect = abs(means["kv_weighted"] - means["kv"]) / means["kv"] if used != "kv" and means["kv"] > 0 else None
    advice = [*_weight_advice("kv", scales.get(used)), *_weight_advice("cka", scales.get("cka"))]
    return Diagnosis(scales, effect, (*advice, *_attention_advice(effect)))


def _weight_advice(name: str, scale: Scale | None) -> Iterator[str]:
    rule = PROPORTIONS[name]
    if scale is None or not scale.share or scale.mean <= 0 or rule.low <= scale.share <= rule.high:
        return
    small = scale.share < rule.low
    aim = rule.raised if small else rule.lowered
    others = scale.weight * scale.mean * (1 - scale.share) / scale.share
    verb, limit = ("raise", f"below {rule.low:.0%}") if small else ("lower", f"above {rule.high:.0%}")
    # Its share is w m / (w m + others): solved for w, because changing a weight changes the total too.
    better = aim / (1 - aim) * others / scale.mean
    found = f"{rule.title}: {scale.share:.1%} of the total, {limit}"
    if better > 0:
        yield f"{found}; {verb} weights.{name} to {better:.3g} for {aim:.0%}"
    else:
        yield f"{found}; the other losses are zero or have no weight"


def _attention_advice(effect: float | None) -> Iterator[str]:
    low, high = EFFECT
    if effect is not None and effect < low:
        yield f"attention: weighting changes the loss by {effect:.1%}, less than {low:.0%}: it does little here"
    if effect is not None and effect > high:
        yield (
            f"attention: weighting changes the loss by {effect:.1%}, more than {high:.0%}: a few tokens decide; warm "
            "up for longer, or take the teacher's attention"
        )


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
