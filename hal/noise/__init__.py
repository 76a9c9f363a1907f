"""Noise as a pure function of (seed, stream, element index), the same bits on every backend.

A tensor of noise, any slice of it and any shard of it are reproduced anywhere from three integers.
The exact mode uses integer operations and conversions that never round; the fast mode uses the
device's own generator and promises only the distribution.
"""

from hal.noise.generate import Mode, bits, bits_at, integers, normal, normal_at, uniform, uniform_at
from hal.noise.layout import chunk_elements
from hal.noise.streams import stream_key

__all__ = [
    "Mode",
    "bits",
    "bits_at",
    "chunk_elements",
    "integers",
    "normal",
    "normal_at",
    "stream_key",
    "uniform",
    "uniform_at",
]
