"""Which kind of fault a set of numbers looks like."""

from __future__ import annotations

from srdd import thresholds
from srdd.measurements import Stability, Transfer, WeightDamage


def stability_kind(stability: Stability, replay: Transfer | None) -> str:
    """Spikes touch few elements; noise touches all and is a visible share of the signal; what is smaller is
    non-determinism. Read off the replay of the site at fault where there is one: what the layer returns has
    been through the rest of it.
    """
    touched = replay.coverage if replay else stability.changed
    size = replay.size if replay else stability.spread
    if touched < thresholds.SPIKE_CHANGED:
        return "spike"
    return "noise" if size >= thresholds.NOISE_SPREAD else "non_determinism"


def transfer_kind(entry: Transfer) -> str:
    """Read the transfer curve of the violating elements: all zero is a dead zone; one common magnitude, or the
    largest inputs cut short, is saturation; one common offset in whole units is a bias; one common ratio is a
    wrong scale, or a flipped sign. Anything else is called corruption.
    """
    if entry.zeroed > thresholds.PURE:
        return "dead_zone"
    shortened = 0 <= entry.ratio < 1
    if shortened and (entry.tied > thresholds.COVERED or entry.largest) and entry.coverage < 1:
        return "saturation"
    whole_units = entry.coverage > thresholds.COVERED
    if whole_units and entry.offset_spread < thresholds.SPREAD:
        return "bias"
    if whole_units and entry.ratio_spread < thresholds.SPREAD:
        return "sign_flip" if -1.1 < entry.ratio < -0.9 else "scale"
    if shortened and entry.tied > thresholds.COVERED:
        return "saturation"
    return "corruption"


def weight_kind(damage: WeightDamage) -> str:
    """One and the same bit, or one bit in each damaged element, is a bit flip; more is other damage."""
    return "bit_flip" if damage.most_bits == 1 else "weight_damage"
