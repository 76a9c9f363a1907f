"""The inputs that a layer is given, beside its own: repeated, perturbed, offset, amplified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hal.noise import normal, stream_key

PERTURBATION = 0.1  # of std(input), the documents' value
OFFSET = 50.0  # in std(input); the documents' +50 for a stream of unit variance
AMPLIFICATION_BITS = 16
SPIKE = 4.0  # in max(abs(offset input)): above any threshold that a kernel takes from a share of the maximum
# In the layer's largest update u: of spikes of size s none comes back below s - u and nothing above s + u, so that a
# clamp at 1 - m of the maximum reaches each where s > u (2 - m) / m. 32 does for m of 1/16 and more.
CLEAR = 32.0
HIGHEST = 1024.0  # in max(abs(offset input)): what a faulty layer returns may be of any size


@dataclass(frozen=True)
class Excitation:
    """One input: its `name`, the residual `stream`, [..., hidden], and the `size` that its probe needs to know
    (a perturbation's std, an offset, a scale).
    """

    name: str
    stream: torch.Tensor
    size: float


def excitations(
    stream: torch.Tensor, output: torch.Tensor, layer: int, seed: int, repeats: int
) -> Iterator[Excitation]:
    """The inputs derived from a layer's own `stream` and what it made of it, one at a time so that one is in memory at
    a time: as many `repeats`, an offset each way (one with spikes), an amplification by a power of two, which is exact,
    and a small random perturbation. A constant stream has no scale of its own and is only repeated. Offsets and scales
    stay below the square root of the dtype's range, because normalisation squares its input.
    """
    for trial in range(repeats):
        yield Excitation(f"repeat_{trial}", stream, 0.0)
    wide = stream.float()
    std = float(wide.std(correction=0))
    top = float(wide.abs().max())
    if std == 0 or not torch.isfinite(wide).all():
        return
    offset = min(OFFSET * std, _ceiling(stream.dtype) / SPIKE - top)
    if offset > std:
        update = float((output.float() - wide).nan_to_num(0.0, 0.0, 0.0).abs().max())
        spiked = _spiked(wide + offset, CLEAR * update, _ceiling(stream.dtype))
        yield Excitation("offset_up", spiked.to(stream.dtype), offset)
        yield Excitation("offset_down", (wide - offset).to(stream.dtype), -offset)
    scale = _scale(top, stream.dtype)
    if scale >= 2:
        yield Excitation("amplified", stream * scale, scale)
    # Last, because replay does not follow it: a fault in every n-th call shows before, for n up to 6.
    noise = normal(tuple(stream.shape), seed=seed, stream=stream_key("srdd.gain", layer))
    delta = (PERTURBATION * std * noise).to(stream.device)
    yield Excitation("perturbed", (wide + delta).to(stream.dtype), PERTURBATION * std)


def _spiked(x: torch.Tensor, clear: float, most: float) -> torch.Tensor:
    """Every second row with a few elements far above the rest, so that each unit is the largest somewhere: as large as
    `clear` if that is more, and no larger than `most`.
    """
    rows = x.reshape(-1, x.shape[-1]).clone()
    largest = float(rows.abs().max())
    top = min(max(SPIKE * largest, clear), HIGHEST * largest, most)
    height = -(-rows.shape[0] // 2)
    for shift in range(-(-2 * rows.shape[1] // max(height, 1))):
        units = (torch.arange(height) + shift * height) % rows.shape[1]
        rows[torch.arange(0, rows.shape[0], 2), units] = top
    return rows.reshape(x.shape)


def _scale(top: float, dtype: torch.dtype) -> float:
    scale = 2.0**AMPLIFICATION_BITS
    while scale * top > _ceiling(dtype) and scale > 1:
        scale /= 2
    return scale


def _ceiling(dtype: torch.dtype) -> float:
    # float16 ends at 65504, and device kernels normalise it in float32: a quarter of its own range is the limit there.
    return float(min(torch.finfo(dtype).max / 4, 1e15))
