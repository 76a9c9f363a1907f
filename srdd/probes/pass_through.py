"""Pass-through: a residual block returns its input plus an update that its normalisation keeps bounded.

For every pre-norm block f(x) = x + g(norm(x)) and every power of two c, f(c x) = c x + g(norm(x)) up to
rounding, so an amplified input must come back as itself plus an update no larger than before. Whatever happens
to the stream itself, dense or in one unit, shows as an element that did not.
"""

from __future__ import annotations

import numpy as np

from srdd.measurements import PassThrough
from srdd.probes.samples import TINY, Array, LayerSamples
from srdd.probes.transfer import describe_transfer

ADDITIONS = 4  # roundings that an element may pass: the block's two or three residual additions, and one to spare
UPDATE = 4.0  # how much an update may grow: normalisation's epsilon holds it back at the input's own size


def measure_pass_through(samples: LayerSamples) -> PassThrough | None:
    """Compare the response to the amplified input with that input; None where it could not be amplified."""
    amplified = samples.others.get("amplified")
    if amplified is None:
        return None
    allowance = ADDITIONS * samples.unit_roundoff * np.abs(amplified.stream)
    allowance = allowance + UPDATE * float(np.abs(samples.update).max())
    growth = _rms(amplified.output) / max(_rms(amplified.stream), TINY)
    return PassThrough(
        transfer=describe_transfer(amplified.stream, amplified.output, allowance, samples.unit_roundoff),
        growth=growth if np.isfinite(growth) else float("nan"),
    )


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
