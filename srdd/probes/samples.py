"""A layer's inputs and outputs as host arrays, so that a device under suspicion never computes its own
statistics.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from srdd.measurements import Checksum

Array = NDArray[np.float64]

_REPEAT = "repeat_"
TINY = 1.17549435e-38  # smallest normal float32: keeps a ratio to an all-zero tensor defined


@dataclass(frozen=True)
class Sample:
    """One excitation and what came back: float64 arrays [rows, hidden] and the excitation's `size`."""

    stream: Array
    output: Array
    size: float


@dataclass
class LayerSamples:
    """Everything sampled at one layer: its own input `stream` and `output`, [rows, hidden], and the further
    samples by the excitation's name, the checksums of its `products`. `unit_roundoff` is half the spacing of the
    dtype at 1. Of runs that repeat the layer's own input, those equal to `output` bit for bit are only counted, as
    `equal_repeats`, so that many of them take no memory.
    """

    stream: Array
    output: Array
    unit_roundoff: float
    others: dict[str, Sample] = field(default_factory=dict)
    products: list[Checksum] = field(default_factory=list)
    equal_repeats: int = 0

    @property
    def update(self) -> Array:
        """What the layer added to its stream."""
        return self.output - self.stream

    def add(self, name: str, sample: Sample) -> None:
        """Keep a sample under the name of its excitation."""
        if name.startswith(_REPEAT) and np.array_equal(sample.output, self.output, equal_nan=True):
            self.equal_repeats += 1
        else:
            self.others[name] = sample

    def different_repeats(self) -> list[Sample]:
        """The samples that repeat the layer's own input and gave another output."""
        return [sample for name, sample in self.others.items() if name.startswith(_REPEAT)]


def to_host(tensor: torch.Tensor) -> Array:
    """A float64 host array [rows, hidden] of any [..., hidden] tensor; widened on the host, because some
    devices have no float64.
    """
    flat = tensor.detach().to("cpu").double().reshape(-1, tensor.shape[-1])
    return np.asarray(flat.numpy(), dtype=np.float64)


# A flushed subnormal, or an exponential that overflowed inside a bounded function (silu(-89)), costs less than this.
UNDERFLOW = 2.0**10 * torch.finfo(torch.float32).smallest_normal


def least_rounding(dtype: torch.dtype) -> float:
    """The error that a small result of `dtype` may have whatever its size: half the spacing of subnormal numbers, or
    what is lost where float32 underflows.
    """
    return max(float(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps) / 2, UNDERFLOW / 8)


def several_roundings(number: float, expected: Array, dtype: torch.dtype) -> Array:
    """What as many roundings to `dtype` may do to values that should be `expected`; subnormal ones may be flushed."""
    roundings: Array = number * unit_roundoff(dtype) * np.abs(expected)
    return roundings + max(torch.finfo(dtype).smallest_normal, UNDERFLOW)


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the spacing of `dtype` at 1: the largest relative error of one rounding."""
    return float(torch.finfo(dtype).eps) / 2
