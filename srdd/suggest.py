"""What a person can do about each kind of finding."""

from __future__ import annotations

_CAUSE = {
    "dead_zone": "small values come back as zero: suspect underflow, a 4-bit format or a flushed subnormal",
    "saturation": "large values are cut off: suspect an overflow mode, a clamp or a narrow accumulator",
    "bias": "a constant is added: suspect a rounding mode, a stale buffer or a wrong bias weight",
    "noise": "the same input gives another output each time: suspect a race or an unstable unit; check clocks",
    "spike": "single elements jump at random: suspect bit flips; run the vendor's memory test",
    "non_determinism": "runs differ by more than rounding: switch deterministic kernels on and repeat",
    "scale": "values come back multiplied by a constant: suspect a wrong scale or epsilon",
    "sign_flip": "values come back with the other sign: suspect a stuck sign bit",
    "non_finite": "NaN or infinity appears here first: suspect overflow; look at the inputs' size and the dtype",
    "corruption": "values are altered without a simple pattern",
}


def suggestion(kind: str, layer: int, site: str) -> str:
    """One sentence on the likely cause and the next command to run."""
    return f"{_CAUSE[kind]}. Next: rerun layer {layer} ({site}) in float32 and scan again."
