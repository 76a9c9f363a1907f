"""Every threshold of the diagnosis and where it comes from. None is fitted to a model."""

from __future__ import annotations

# Stability. Its statistics are in units of the rounding error that another order of summation can cause in an
# element. A healthy layer stays near 1 per unit; attention amplifies single elements up to 26 (measured
# on bfloat16 replays of a trained model). A factor 2.5 to 4 above each.
UNSTABLE_UNIT = 4.0
UNSTABLE_ELEMENT = 64.0

# Pass-through. The statistic is already a deviation over its rounding bound.
PASS_THROUGH = 1.0
# A block that normalises its own output returns the same size whatever the input's: growth near 1 / scale.
# One that carries its input returns it at full size. The geometric middle separates them.
CARRIES_STREAM = 0.5

# Host replay. The statistic is a deviation over what rounding may do to that element (srdd/replay/compare.py).
REPLAY = 1.0

# Values that lean one way: the statistic is already in units of what is allowed (srdd/replay/drift.py).
DRIFT = 1.0

# Checksums of products. The statistic is a residual over its rounding bound (srdd/probes/checksum.py).
CHECKSUM = 1.0

# A cache returns what was stored, bit for bit: one differing unit is damage.
CACHE_UNITS = 0.5

# Sums of subnormal numbers are exact: one that comes back as zero was flushed.
FLUSHED = 0.5

# Weights are compared bit for bit: one differing element is damage.
WEIGHT_ELEMENTS = 0.5

# Ties at the maximum: probability, per layer, that chance gives as many. With 100 layers and 1000 scans
# one false alarm in 10 000 such campaigns.
TIE_PROBABILITY = 1e-9
# Exact zeros: more of them than of all the values in the lower quarter of the non-zero magnitudes.
ZERO_SHARE = 0.01

# The documents' statistical rules; evidence and labels only, never an alarm of their own, because healthy
# networks break them (massive activations appear and vanish within one layer).
GAIN_SHARE_OF_MEDIAN = 0.8
PILE_UP = 1.5
KURTOSIS_EDGE = 6.0

# Telling kinds apart.
LAST_PLACE = 2.0**-7  # of a value: a step of bfloat16 at most, and all that a cleared last bit takes
SPIKE_CHANGED = 0.05  # spikes touch few elements (0.01 m of them), noise touches all
SPIKE_SIZE = 1.0  # typical sizes of the signal: what stands out less, seen in few elements, is the tail of noise
SPIKE_HEIGHT = 6.0  # standard deviations that a spike stands off by: chance gives one element in 10**9 as many
NOISE_SPREAD = 0.1  # below a tenth of the signal, run-to-run differences are called non-determinism
PURE = 0.9
SPREAD = 0.1
EXACT_SPREAD = 0.01
EXACTER = 0.1  # of two spreads, the one that is a tenth of the other or less
COVERED = 0.5
FILLED = 0.95
