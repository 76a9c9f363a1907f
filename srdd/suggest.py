"""What a person can do about each kind of finding."""

from __future__ import annotations

from srdd.measurements import ALONE, MASKED, WeightDamage, WrongConstant
from srdd.site_names import OF_INPUT, OF_OUTPUT

_CAUSE = {
    "dead_zone": "small values come back as zero: suspect underflow, a 4-bit format or a flushed subnormal",
    "flush_subnormals": "numbers below the smallest normal one come back as zero here and not in other layers: suspect "
    "another rounding mode or kernel",
    "saturation": "large values are cut off: suspect an overflow mode, a clamp or a narrow accumulator",
    "bias": "a constant is added: suspect a rounding mode, a stale buffer or a wrong bias weight",
    "rounding": "roundings lean one way: suspect truncation instead of rounding to nearest",
    "wrong_constant": "another constant explains every value: compare the configurations and the kernel's arguments",
    "noise": "the same input gives another output each time: suspect a race or an unstable unit; check clocks",
    "spike": "single elements jump at random: suspect bit flips; run the vendor's memory test",
    "non_determinism": "runs differ by more than rounding: switch deterministic kernels on and repeat",
    "stuck_at": "units return one value whatever goes in: suspect a stuck bit, lane or buffer",
    "scale": "values come back multiplied by a constant: suspect a wrong scale or epsilon",
    "sign_flip": "values come back with the other sign: suspect a stuck sign bit",
    "non_finite": "NaN or infinity appears here first: suspect overflow; look at the inputs' size and the dtype",
    "bit_flip": "a bit is turned over: suspect the memory or its path",
    "weight_damage": "weights in device memory differ from the checkpoint: suspect a bad copy or the wrong file",
    "corruption": "values are altered without a simple pattern",
}

ONLY_WHERE = {
    ALONE: "only where one token is computed alone, as when a text is generated, whose kernels are others",
    MASKED: "only where sequences are of different lengths, as in a padded batch: look at the mask's form",
}


def suggestion(kind: str, layer: int, site: str, detail: str = "", weights: bool = False, outside: bool = False) -> str:
    """One sentence on the likely cause, with the `detail` that is known, and what to do next; `weights` says that
    damaged ones are the cause, `outside` that the site belongs to no layer.
    """
    cause = f"{_CAUSE[kind]}; {detail}" if detail else _CAUSE[kind]
    if weights:
        return f"{cause}. Next: load the weights again and scan again."
    if site.startswith((OF_INPUT, OF_OUTPUT)):
        return f"{cause}. Next: look for what alters the {site} after it was made: hooks, copies, memory."
    rerun = f"rerun {site}" if outside else f"rerun layer {layer} ({site})"
    _, _, part = site.partition(f".{layer}.")
    place = f" --site {part}" if part and part != "kv_cache" else ""
    arguments = f"--site {site}" if outside else f"--layer {layer}{place}"
    return f"{cause}. Next: {rerun} in float32 and scan again: python -m srdd verify-fix {arguments}"


def describe_constant(constant: WrongConstant) -> str:
    """Which constant the device must have used; infinity, or what a JSON file holds in its place, limits nothing."""
    if constant.acting > 1e300:
        return f"{constant.name}, configured as {constant.configured:g}, is ignored"
    return f"{constant.name} acts as {constant.acting:.6g}, configured is {constant.configured:.6g}"


def describe_factor(factor: float) -> str:
    """By what the values are multiplied."""
    return f"the factor is about {factor:.4g}"


def describe_damage(damage: WeightDamage) -> str:
    """Where the weight differs first, and how."""
    index = ", ".join(str(axis) for axis in damage.index)
    bit = f", bit {damage.bit}" if damage.bit >= 0 else ""
    return (
        f"{damage.elements} of {damage.of} elements of {damage.name}, first [{index}]: "
        f"{damage.held:g} for {damage.stored:g}{bit}"
    )
