"""Order and frequency statistics of a tensor: quantiles, histogram, repeated values.

Device work is float32 or integer, never float64, which some accelerators narrow without saying so.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hal.errors import UsageError
from hal.ops.catalogue import Arguments, Op, register
from hal.ops.moments import Moments, flatten, merge, moments
from hal.ops.precision import host64
from hal.ops.sampling import SampleSpec

__all__ = ["Moments", "Repeats", "even_edges", "histogram", "merge", "moments", "multiplicity", "quantile"]

_DEVICE_CHUNK = 1 << 24


class Repeats(NamedTuple):
    """The most frequent exact values of a tensor, most frequent first, as float32 on the host, and how often each
    occurs (int64).
    """

    values: torch.Tensor
    counts: torch.Tensor


@torch.no_grad()
def multiplicity(x: torch.Tensor, top: int = 1) -> Repeats:
    """The `top` most frequent exact values of `x` (float32, bfloat16 or float16, any shape; fewer where it has fewer
    distinct values). Zeros of either sign are one value, NaNs of any payload too; of values equally frequent the one
    with the smaller bit pattern, read as a signed integer, comes first. Waits for the device.
    """
    flat = flatten(x)
    if top < 1:
        raise UsageError(f"multiplicity of the top {top} values was asked for: give at least 1")
    if flat.dtype == torch.float32:
        keys, counts = torch.unique_consecutive(_canonical_bits(flat).sort().values, return_counts=True)
    else:
        dense = torch.bincount(_canonical_bits(flat) + (1 << 15), minlength=1 << 16)
        keys = dense.nonzero().view(-1)
        counts = dense[keys]
        keys = (keys - (1 << 15)).to(torch.int16)
    # One number per value orders by count, then by bit pattern, so that no tie is left to the device.
    order = counts * (1 << 32) + ((1 << 31) - 1 - keys.to(torch.int64))
    chosen = order.topk(min(top, order.numel())).indices
    return Repeats(keys[chosen].view(flat.dtype).float().cpu(), counts[chosen].cpu())


@torch.no_grad()
def quantile(x: torch.Tensor, q: Sequence[float]) -> torch.Tensor:
    """The quantiles `q` (each in [0, 1]) of all elements of `x`, float32 [len(q)] on its device, interpolated linearly
    between order statistics; NaN if `x` holds a NaN. No limit on the number of elements but memory.
    """
    flat = flatten(x).to(torch.float32)
    if not flat.numel() or not all(0.0 <= level <= 1.0 for level in q):
        raise UsageError(f"quantiles {list(q)} of {flat.numel()} elements: levels in [0, 1] of at least one element")
    ordered = flat.sort().values
    positions = [level * (flat.numel() - 1) for level in q]
    below = torch.tensor([math.floor(position) for position in positions], device=x.device)
    above = torch.tensor([math.ceil(position) for position in positions], device=x.device)
    weight = torch.tensor([position % 1.0 for position in positions], device=x.device)
    low, high = ordered[below], ordered[above]
    # Equal neighbours are returned as they are: infinity times a zero weight would be NaN.
    mixed = torch.where(low == high, low, low * (1 - weight) + high * weight)
    result = torch.where(weight == 0, low, mixed)
    return torch.where(flat.isnan().any(), torch.full_like(result, math.nan), result)


@torch.no_grad()
def histogram(x: torch.Tensor, edges: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """How many elements of `x` lie in each bin, int64 [len(edges) - 1] on its device. Bin i holds edges[i] <= x <
    edges[i + 1], the last one its upper edge too; elements outside and NaNs are in none. Edges are rounded to float32
    and must then increase, or a UsageError says so.
    """
    host = torch.as_tensor(edges, dtype=torch.float32, device="cpu")
    if host.dim() != 1 or len(host) < 2 or not bool((host[1:] > host[:-1]).all()):
        raise UsageError(f"histogram edges {host.tolist()}: give at least two, strictly increasing")
    bins, last = len(host) - 1, float(host[-1])
    device_edges = host.to(x.device)
    total = torch.zeros(bins + 2, dtype=torch.int64, device=x.device)
    for piece in torch.split(flatten(x), _DEVICE_CHUNK):
        values = piece.to(torch.float32)
        place = torch.bucketize(values, device_edges, right=True)
        place = torch.where(values == last, bins, place)
        total += torch.bincount(place, minlength=bins + 2)
    return total[1:-1]


def even_edges(low: float, high: float, bins: int) -> list[float]:
    """`bins + 1` evenly spaced edges from `low` to `high`, computed on the host so that every device gets the same
    ones.
    """
    return [low + (high - low) * index / bins for index in range(bins)] + [high]


def _canonical_bits(flat: torch.Tensor) -> torch.Tensor:
    """Bit patterns as integers, with one pattern for zero and one for NaN."""
    integer, infinity = {
        torch.float32: (torch.int32, 0x7F800000),
        torch.bfloat16: (torch.int16, 0x7F80),
        torch.float16: (torch.int16, 0x7C00),
    }[flat.dtype]
    code = flat.contiguous().view(integer).to(torch.int32)
    magnitude = code & (0x7FFFFFFF if integer == torch.int32 else 0x7FFF)
    code = torch.where(magnitude == 0, magnitude, code)
    return torch.where(magnitude > infinity, magnitude.clamp(max=infinity + 1), code)


def _quantile_parts(x: torch.Tensor, q: Sequence[float]) -> list[tuple[float, float, float]]:
    ordered = sorted(host64(x).flatten().tolist())
    if any(math.isnan(value) for value in ordered):
        return [(math.nan, math.nan, 0.0)] * len(q)
    places = [level * (len(ordered) - 1) for level in q]
    return [(ordered[math.floor(place)], ordered[math.ceil(place)], place % 1.0) for place in places]


def _quantile_reference(x: torch.Tensor, q: Sequence[float]) -> torch.Tensor:
    return torch.tensor(
        [
            low if weight == 0 or low == high else low * (1 - weight) + high * weight
            for low, high, weight in _quantile_parts(x, q)
        ],
        dtype=torch.float64,
    )


def _quantile_scale(x: torch.Tensor, q: Sequence[float]) -> torch.Tensor:
    return torch.tensor([abs(low) + abs(high) for low, high, _ in _quantile_parts(x, q)], dtype=torch.float64)


def _histogram_reference(x: torch.Tensor, edges: Sequence[float]) -> torch.Tensor:
    exact = torch.tensor(edges, dtype=torch.float32).tolist()
    counts = [0] * (len(exact) - 1)
    for value in host64(x).flatten().tolist():
        for place, (low, high) in enumerate(itertools.pairwise(exact)):
            last = place == len(counts) - 1
            counts[place] += low <= value < high or (last and value == high)
    return torch.tensor(counts)


def _multiplicity_reference(x: torch.Tensor, top: int = 1) -> Repeats:
    integer = torch.int32 if x.dtype == torch.float32 else torch.int16
    values = torch.where(x.isnan(), math.nan, torch.where(x == 0, 0.0, x)).cpu().flatten()
    frequency = Counter(values.view(integer).tolist())
    chosen = sorted(frequency.items(), key=lambda item: (-item[1], item[0]))[:top]
    patterns = torch.tensor([pattern for pattern, _ in chosen], dtype=integer)
    return Repeats(patterns.view(x.dtype).float(), torch.tensor([count for _, count in chosen]))


def _sample(spec: SampleSpec) -> torch.Tensor:
    return spec.data("x", *spec.pick(tiny=(2, 8), odd=(3, 5, 37), large=(64, 257)))


def _sample_quantile(spec: SampleSpec) -> Arguments:
    return _sample(spec), (0.0, 0.001, 0.25, 0.5, 0.999, 1.0)


def _sample_histogram(spec: SampleSpec) -> Arguments:
    return _sample(spec), tuple(even_edges(-3.0, 3.0, 12))


def _sample_multiplicity(spec: SampleSpec) -> Arguments:
    x = _sample(spec)
    x.view(-1)[::3] = x.view(-1)[0].clone()
    return x, 3


QUANTILE = register(
    Op(
        "quantile",
        "quantile(x[...], q: sequence of float) -> [len(q)] float32",
        quantile,
        _quantile_reference,
        _sample_quantile,
        differentiable=False,
        error_scale=_quantile_scale,
    )
)
HISTOGRAM = register(
    Op(
        "histogram",
        "histogram(x[...], edges[B + 1]) -> [B] int64",
        histogram,
        _histogram_reference,
        _sample_histogram,
        differentiable=False,
        exact=True,
    )
)
MULTIPLICITY = register(
    Op(
        "multiplicity",
        "multiplicity(x[...], top: int = 1) -> Repeats(values[top] float32, counts[top] int64)",
        multiplicity,
        _multiplicity_reference,
        _sample_multiplicity,
        differentiable=False,
        exact=True,
    )
)
