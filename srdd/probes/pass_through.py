"""Pass-through: a residual block returns its input plus an update that its normalisation keeps bounded.

For every pre-norm block f(x) = x + g(norm(x)) and every power of two c, f(c x) = c x + g(norm(x)) up to
rounding, so an amplified input must come back as itself plus an update no larger than before. Whatever happens
to the stream itself, dense or in one unit, shows as an element that did not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from srdd.measurements import PassThrough
from srdd.probes.samples import TINY, Array, LayerSamples
from srdd.probes.transfer import describe_transfer

ADDITIONS = 4  # roundings that an element may pass: the block's two or three residual additions, and one to spare
UPDATE = 4.0  # how much an update may grow: normalisation's epsilon holds it back at the input's own size


def measure_pass_through(
    samples: LayerSamples, host: Callable[[Array], Array | None] | None = None
) -> PassThrough | None:
    """Compare the response to the amplified input with that input; None where it could not be amplified. `host` says
    what an intact layer makes of an input, [rows, hidden], None if it cannot: where the device's did not pass its input
    through and the host's does not either (a first block without a norm), it is the architecture: the result is None.
    """
    amplified = samples.others.get("amplified")
    if amplified is None:
        return None
    found = _compared(samples, amplified.stream, amplified.output)
    if host is not None and found.transfer.violation > 1:
        intact = host(amplified.stream)
        if intact is not None and _compared(samples, amplified.stream, intact).transfer.violation > 1:
            return None
    return found


def _compared(samples: LayerSamples, stream: Array, output: Array) -> PassThrough:
    allowance = ADDITIONS * samples.unit_roundoff * np.abs(stream)
    allowance = allowance + UPDATE * float(np.abs(samples.update).max())
    growth = _rms(output) / max(_rms(stream), TINY)
    return PassThrough(
        transfer=describe_transfer(stream, output, allowance, samples.unit_roundoff),
        growth=growth if np.isfinite(growth) else float("nan"),
    )


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
