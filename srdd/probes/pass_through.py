"""Pass-through: a residual block returns its input plus an update that its normalisation keeps bounded.

For every pre-norm block f(x) = x + g(norm(x)) and every power of two c, f(c x) = c x + g(norm(x)) up to
rounding, so an amplified input must come back as itself plus an update no larger than before. Whatever
happens to the stream itself, dense or in one unit, shows as an element that did not.
"""

from __future__ import annotations

import numpy as np

from srdd.measurements import PassThrough
from srdd.probes.samples import TINY, Array, LayerSamples, Sample

ADDITIONS = 4  # roundings that an element may pass: the block's two or three residual additions, and one to spare
UPDATE = 4.0  # how much an update may grow: normalisation's epsilon holds it back at the input's own size


def measure_pass_through(samples: LayerSamples) -> PassThrough | None:
    """Compare the response to the amplified input with that input; None where it could not be amplified."""
    amplified = samples.others.get("amplified")
    if amplified is None:
        return None
    error = amplified.output - amplified.stream
    allowance = ADDITIONS * samples.unit_roundoff * np.abs(amplified.stream)
    allowance = allowance + UPDATE * float(np.abs(samples.update).max())
    allowance = np.maximum(allowance, TINY)
    with np.errstate(invalid="ignore"):
        excess = np.where(np.isfinite(error), np.abs(error) / allowance, np.inf)
    return _describe(samples, amplified, error, excess)


def _describe(samples: LayerSamples, amplified: Sample, error: Array, excess: Array) -> PassThrough:
    violating = excess > 1
    units = violating.any(axis=0)
    x, y = amplified.stream[violating], amplified.output[violating]
    others = np.abs(amplified.stream[:, units][~violating[:, units]])
    offset, offset_spread = _centre(error[violating] / amplified.stream.std())
    ratio, ratio_spread = _centre(y[x != 0] / x[x != 0])
    growth = _rms(amplified.output) / max(_rms(samples.output), TINY) / amplified.size
    return PassThrough(
        violation=float(np.minimum(excess.max(), 1e12)),
        fraction=float(violating.mean()),
        units=int(units.sum()),
        width=int(units.size),
        coverage=float(violating[:, units].mean()) if units.any() else 0.0,
        zeroed=float((y == 0).mean()) if y.size else 0.0,
        tied=_tied(y),
        largest=bool(x.size and (others.size == 0 or np.abs(x).min() >= others.max())),
        offset=offset,
        offset_spread=offset_spread,
        ratio=ratio,
        ratio_spread=ratio_spread,
        growth=growth if np.isfinite(growth) else float("nan"),
    )


def _centre(values: Array) -> tuple[float, float]:
    """Median, and median absolute deviation over the median's magnitude."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return float("nan"), float("nan")
    middle = float(np.median(finite))
    deviation = float(np.median(np.abs(finite - middle)))
    return middle, deviation / abs(middle) if middle else float("inf")


def _tied(values: Array) -> float:
    if values.size == 0:
        return 0.0
    _, counts = np.unique(np.abs(values), return_counts=True)
    return float(counts.max() / values.size)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
