"""From what a scan measured at each layer to how much noise it should carry: pure functions on plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

LOWEST, HIGHEST = 0.01, 0.15  # sigma is kept in this range
RAISE, LOWER = 1.5, 0.5
LOW_GAIN = 0.8
HIGH_KURTOSIS = 1.2  # times the median
UNSTABLE = 0.1  # std of repeated outputs over std of the output
EXTREME_KURTOSIS, MOST = 4000.0, 2.0  # from RAISE at this kurtosis to MOST at twice it
TIERS: Final = ((10.0, 1.5), (1.0, 1.2))  # a scan's score above which a layer's noise is multiplied
NOISY_KINDS: Final = frozenset({"noise", "spike", "non_determinism"})


@dataclass(frozen=True)
class LayerEvidence:
    """What a scan says of one layer: `gain`, `kurtosis` and `instability` (NaN where not measured), the scan's `score`
    (1 at its threshold), the `kind` of fault found there ("" for none), and its `label`.
    """

    index: int
    gain: float = math.nan
    kurtosis: float = math.nan
    instability: float = math.nan
    score: float = 0.0
    kind: str = ""
    label: str = "ok"


@dataclass(frozen=True)
class Advice:
    """The noise of one layer: `multiplier` of the base, the resulting `sigma`, and the `reasons`."""

    layer: int
    sigma: float
    multiplier: float
    reasons: tuple[str, ...] = field(default=())


_Votes = dict[int, list[tuple[float, str]]]


def advise(layers: Sequence[LayerEvidence], base_sigma: float, rules: str = "relative") -> list[Advice]:
    """The noise of every layer. All rules: a fault found there, or instability above 0.1, decide, and a saturation that
    was seen behind its source counts for the source. "relative": gain below 0.8 of the median and kurtosis above 1.2 of
    the median, times 1.5 each. "absolute": gain below 0.8, times 1.5; kurtosis above 4000, times 1.5 to 2. "tiers":
    times 1.2 above the scan's threshold, 1.5 at ten times it. Reasons to raise multiply up to 2; every sigma is kept in
    [0.01, 0.15].
    """
    votes: _Votes = {layer.index: [] for layer in layers}
    _RULES[rules](layers, votes)
    _accused(layers, votes)
    _propagated(layers, votes)
    return [_decided(layer, votes[layer.index], base_sigma) for layer in layers]


def _relative(layers: Sequence[LayerEvidence], votes: _Votes) -> None:
    gain, kurtosis = _median(layer.gain for layer in layers), _median(layer.kurtosis for layer in layers)
    for layer in layers:
        if layer.gain < LOW_GAIN * gain:
            votes[layer.index].append((RAISE, f"gain {layer.gain:.3g} < 0.8 of the median {gain:.3g}"))
        if kurtosis > 0 and layer.kurtosis > HIGH_KURTOSIS * kurtosis:
            votes[layer.index].append((RAISE, f"kurtosis {layer.kurtosis:.4g} > 1.2 of the median {kurtosis:.4g}"))


def _absolute(layers: Sequence[LayerEvidence], votes: _Votes) -> None:
    for layer in layers:
        if layer.gain < LOW_GAIN:
            votes[layer.index].append((RAISE, f"gain {layer.gain:.3g} < 0.8"))
        if layer.kurtosis > EXTREME_KURTOSIS:
            share = min(layer.kurtosis / EXTREME_KURTOSIS - 1, 1.0)
            votes[layer.index].append((RAISE + (MOST - RAISE) * share, f"kurtosis {layer.kurtosis:.4g} > 4000"))


def _tiers(layers: Sequence[LayerEvidence], votes: _Votes) -> None:
    for layer in layers:
        for limit, factor in TIERS:
            if layer.score > limit:
                votes[layer.index].append((factor, f"score {layer.score:.3g} > {limit:g}"))
                break


def _accused(layers: Sequence[LayerEvidence], votes: _Votes) -> None:
    for layer in layers:
        if layer.instability > UNSTABLE:
            votes[layer.index].append((LOWER, f"instability {layer.instability:.3g} > 0.1"))
        elif layer.kind in NOISY_KINDS:
            votes[layer.index].append((LOWER, f"found: {layer.kind}, which is noise already"))
        elif layer.kind:
            votes[layer.index].append((RAISE, f"found: {layer.kind}"))


def _propagated(layers: Sequence[LayerEvidence], votes: _Votes) -> None:
    sources = [layer.index for layer in layers if layer.label in ("SAT_SOURCE", "DISCRETE_SAT", "PILEUP_SAT")]
    for layer in layers:
        before = [source for source in sources if source < layer.index]
        if layer.label == "SAT_PROP" and before:
            entry = (RAISE, "its saturation is seen in layers behind it")
            if entry not in votes[before[-1]]:
                votes[before[-1]].append(entry)


def _decided(layer: LayerEvidence, votes: list[tuple[float, str]], base: float) -> Advice:
    lowered = [vote for vote in votes if vote[0] < 1]
    # What is noisy by itself gets less, whatever else speaks for more.
    counted = lowered or votes
    multiplier = min(math.prod(factor for factor, _ in counted), MOST)
    sigma = min(max(base * multiplier, LOWEST), HIGHEST)
    return Advice(layer.index, sigma, sigma / base, tuple(reason for _, reason in counted))


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return median(known) if known else math.nan


_RULES: Final[Mapping[str, Callable[[Sequence[LayerEvidence], _Votes], None]]] = {
    "relative": _relative,
    "absolute": _absolute,
    "tiers": _tiers,
}
RULES: Final = tuple(_RULES)
