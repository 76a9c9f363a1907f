"""Which kind of fault a set of numbers looks like."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import median

from srdd import thresholds
from srdd.measurements import CacheIntegrity, LayerMeasurement, SiteReplay, Stability, Transfer, WeightDamage

# Where several kinds explain what was seen, the more special one is named.
_PRIORITY = (
    "stuck_at",
    "dead_zone",
    "saturation",
    "sign_flip",
    "bit_flip",
    "non_finite",
    "bias",
    "scale",
)


# What a small common factor, or truncation, looks like where replay shows it beside roundings, or does not show it.
_LEANING = ("bias", "rounding", "corruption")


def layer_kind(layer: LayerMeasurement, probes: Collection[str], failed: Sequence[SiteReplay]) -> str:
    """The kind of fault of a layer that `probes` accuse and whose replay `failed` at these sites, worst first."""
    if "finite" in probes:
        kind = transfer_kind(_transfers(failed))
        return kind if kind in ("bit_flip", "stuck_at") else "non_finite"
    if layer.stability and not {"instability", "instability_element"}.isdisjoint(probes):
        return stability_kind(layer.stability, _transfers(failed))
    kind = _deterministic_kind(layer, probes, failed)
    return _leaning_kind(kind, layer, failed) if "rounding_drift" in probes else kind


def _leaning_kind(kind: str, layer: LayerMeasurement, failed: Sequence[SiteReplay]) -> str:
    """What a layer of that `kind` has whose values lean one way besides."""
    site, transfers = telling_site(layer, failed), _transfers(failed)
    if kind in _LEANING and site is not None and not math.isnan(site.factor):
        return "scale"
    cleared = kind == "bit_flip" and all(entry.size < thresholds.LAST_PLACE for entry in transfers)
    return "rounding" if (cleared or kind == "corruption") and all(map(_one_way, transfers)) else kind


def _deterministic_kind(layer: LayerMeasurement, probes: Collection[str], failed: Sequence[SiteReplay]) -> str:
    if layer.pass_through and "pass_through" in probes:
        own = [site for site in failed if site.site == layer.site and not site.operator]
        # Replay knows each value that should have come; the probe knows only that the update is small beside it.
        return _site_kind(own) if own else transfer_kind([layer.pass_through.transfer])
    if layer.kv_cache and set(probes) == {"kv_cache"}:
        return _cache_kind(layer.kv_cache)
    return _site_kind(failed) if failed else _unreplayed_kind(layer, probes)


def _unreplayed_kind(layer: LayerMeasurement, probes: Collection[str]) -> str:
    """The kind of a fault that host replay does not show."""
    if layer.checksum and "checksum" in probes and not layer.checksum.finite:
        return "non_finite"
    if set(probes) == {"subnormals"}:
        return "flush_subnormals"
    if "rounding_drift" in probes:
        return "rounding"
    if "multiplicity" in probes:
        return "saturation"
    return "dead_zone" if "zeros" in probes else "corruption"


def telling_site(layer: LayerMeasurement, failed: Sequence[SiteReplay]) -> SiteReplay | None:
    """The replayed site that tells most of the fault: the first that `failed`, or the one that leans most where none
    did.
    """
    return failed[0] if failed else layer.leaning


def _one_way(entry: Transfer) -> bool:
    """Whether nearly all values came out smaller than expected, or nearly all larger: what biased rounding does."""
    return not 1 - thresholds.PURE < entry.shrunk < thresholds.PURE


def _site_kind(failed: Sequence[SiteReplay]) -> str:
    worst = failed[0]
    if worst.repeats is False:
        return _random_transfer_kind(_transfers(failed))
    return "wrong_constant" if worst.constant else transfer_kind(_transfers(failed))


def _cache_kind(cache: CacheIntegrity) -> str:
    if cache.repeats:
        return transfer_kind([cache.transfer])
    return _random_kind(_few(cache.transfer.coverage), cache.transfer.size)


def _transfers(failed: Sequence[SiteReplay]) -> list[Transfer]:
    """How the values of the worst site transfer, under each input that shows it."""
    return [failed[0].transfer, *failed[0].others] if failed else []


def stability_kind(stability: Stability, replay: Sequence[Transfer]) -> str:
    """A glitch is a deterministic fault that comes and goes, and has that fault's kind. Of the others, spikes touch
    few elements; noise touches all and is a visible share of the signal; what is smaller is non-determinism. Read
    off the replay of the site at fault where there is one: what the layer returns has been through the rest of it.
    """
    if stability.glitch is not None:
        kind = transfer_kind([stability.glitch])
        if kind != "corruption":
            return kind
    if replay:
        return _random_transfer_kind(replay)
    return _random_kind(_few(stability.changed), stability.spread)


def _random_kind(spikes: bool, size: float) -> str:
    if spikes:
        return "spike"
    return "noise" if size >= thresholds.NOISE_SPREAD else "non_determinism"


def _random_transfer_kind(entries: Sequence[Transfer]) -> str:
    """Few elements beyond rounding are spikes where they are larger than the signal, the tails of small noise
    otherwise. Both as under most inputs: beside values far out, as in a spiked row, noise looks small or large.
    """
    spikes = [_few(entry.coverage) and entry.size >= thresholds.SPIKE_SIZE for entry in entries]
    return _random_kind(2 * sum(spikes) > len(spikes), median(entry.size for entry in entries))


def _few(share: float) -> bool:
    """Whether so small a share of the elements is touched as spikes touch."""
    return share < thresholds.SPIKE_CHANGED


def transfer_kind(entries: Sequence[Transfer]) -> str:
    """The kind that explains the transfer curves of most of the inputs under which the values violate. When none
    explains at least half of them: "spike" for a few elements far out under each input, "corruption" otherwise.
    """
    explained = dict.fromkeys(_PRIORITY, 0)
    for entry in entries:
        for kind in _explanations(entry):
            explained[kind] += 1
    if len(entries) < 2:
        explained["stuck_at"] -= 1 if explained["dead_zone"] else 0  # one input does not tell the two apart
    elif _same_bit_level(entries):
        explained["stuck_at"] = max(explained["stuck_at"], explained["bit_flip"])
    elif 2 * explained["stuck_at"] >= explained["dead_zone"] and not any(entry.spared_large for entry in entries):
        # An input that roundings nearly hide shows too few elements for a stuck value, and no larger one came through.
        explained["stuck_at"] = max(explained["stuck_at"], explained["dead_zone"])
    best = max(_PRIORITY, key=lambda kind: (explained[kind], -_PRIORITY.index(kind)))
    if explained[best] and 2 * explained[best] >= len(entries):
        return best
    return "spike" if entries and all(_few_far_out(entry) for entry in entries) else "corruption"


def _few_far_out(entry: Transfer) -> bool:
    return _few(entry.coverage) and abs(entry.offset) > thresholds.SPIKE_HEIGHT


def _explanations(entry: Transfer) -> list[str]:
    """The kinds that a transfer curve is like. All zero is a dead zone, and a stuck value where no larger one came
    through; one common magnitude, or the largest inputs cut short, is saturation; one common offset in whole units
    or in values of every size is a bias; one common ratio is a wrong scale, or a flipped sign.
    """
    kinds = []
    shortened = 0 <= entry.ratio < 1
    whole = entry.coverage > thresholds.COVERED or entry.diverse
    fixed = entry.constant > thresholds.PURE and entry.coverage > thresholds.COVERED and not entry.spared_large
    spoilt = entry.not_finite > thresholds.PURE
    if fixed and not spoilt and (entry.diverse or entry.zeroed > thresholds.PURE):
        kinds.append("stuck_at")
    if entry.zeroed > thresholds.PURE:
        kinds.append("dead_zone")
    elif shortened and (entry.tied > thresholds.COVERED or (entry.largest and entry.coverage < 1)):
        kinds.append("saturation")
    if entry.one_bit > thresholds.PURE:
        kinds.append("bit_flip")
    if spoilt:
        kinds.append("non_finite")
    # Values that are nearly the same have both, and the one that was put on them more exactly.
    scaled = entry.ratio_spread < thresholds.EXACTER * entry.offset_spread
    if whole and entry.offset_spread < thresholds.SPREAD and not scaled:
        kinds.append("bias")
    # A wrong scale leaves no ordinary value alone; where most are, only an exact ratio is one (of some addresses).
    spread = thresholds.SPREAD if entry.coverage > thresholds.COVERED else thresholds.EXACT_SPREAD
    if whole and entry.ratio_spread < spread and entry.zeroed <= thresholds.PURE:
        kinds.append("sign_flip" if -1.1 < entry.ratio < -0.9 else "scale")
    return kinds


def _same_bit_level(entries: Sequence[Transfer]) -> bool:
    """Whether the wrong bit has one and the same level under every input, and is right wherever it should have it."""
    levels = {entry.bit_level for entry in entries}
    partly = any(entry.coverage < thresholds.FILLED for entry in entries)
    return len(levels) == 1 and not any(math.isnan(level) for level in levels) and levels <= {0.0, 1.0} and partly


def weight_kind(damage: WeightDamage) -> str:
    """One and the same bit, or one bit in each damaged element, is a bit flip; more is other damage."""
    return "bit_flip" if damage.most_bits == 1 else "weight_damage"
