"""Statistics of a tensor: moments, quantiles, histogram, repeated values.

Device work is float32 or integer, never float64, which some accelerators narrow without saying so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from hal.errors import UsageError

ROW = 4096  # elements summed in float32 before the host goes on in float64
_HOST_CHUNK = 16 * ROW
_DEVICE_CHUNK = 4096 * ROW
_EXPONENT = 0x7F800000  # exponent field of a float32
_ONE_TWICE = 254 << 23  # twice the exponent field of 1.0


class Moments(NamedTuple):
    """Number of elements, their mean, and the sums of the second to fourth powers of their deviations from
    it (Pébay, SAND2008-6212): enough to merge chunks exactly. Non-finite elements make all but the size NaN.
    """

    size: int
    mean: float
    m2: float
    m3: float
    m4: float

    @property
    def variance(self) -> float:
        """Population variance, m2 / n; NaN without elements."""
        return self.m2 / self.size if self.size else math.nan

    @property
    def standard_deviation(self) -> float:
        """Square root of the population variance."""
        return math.sqrt(self.variance)

    @property
    def skewness(self) -> float:
        """Third standardised moment; NaN where the variance is zero."""
        return math.sqrt(self.size) * self.m3 / self.m2**1.5 if self.m2 else math.nan

    @property
    def kurtosis(self) -> float:
        """Fisher (excess) kurtosis, n * m4 / m2**2 - 3, zero for a Gaussian; NaN at zero variance."""
        return self.size * self.m4 / self.m2**2 - 3.0 if self.m2 else math.nan

    def merge(self, *others: Moments) -> Moments:
        """The moments of this and the `others`' elements together."""
        return merge((self, *others))


def merge(parts: Iterable[Moments]) -> Moments:
    """The moments of all elements of `parts` together, in any order and grouping."""
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*parts, strict=True)]
    if not columns:
        return Moments(0, 0.0, 0.0, 0.0, 0.0)
    count, mean, *sums = columns
    return _around_common_mean(count, mean, [torch.zeros_like(mean), *sums])


@torch.no_grad()
def moments(x: torch.Tensor) -> Moments:
    """Moments of all elements of `x` (any shape, floating) in one pass: rows of 4096 elements are scaled by
    an exact power of two and summed about their own mean in float32, then joined in float64 on the host, so
    neither a large offset nor values near overflow lose accuracy. Waits for the device.
    """
    flat = _flatten(x)
    size = _HOST_CHUNK if x.device.type == "cpu" else _DEVICE_CHUNK
    whole = flat.numel() // ROW * ROW
    pieces = [piece.view(-1, ROW) for piece in torch.split(flat[:whole], size)] if whole else []
    if whole < flat.numel():
        pieces.append(flat[whole:].view(1, -1))
    if not pieces:
        return Moments(0, 0.0, 0.0, 0.0, 0.0)
    inverse, centre, *sums = torch.cat([_row_sums(piece) for piece in pieces], 1).cpu().double()
    count = torch.full_like(centre, ROW)
    count[-1] = flat.numel() - ROW * (len(count) - 1)
    powers = [total / inverse**power for power, total in enumerate(sums, 1)]
    return _around_common_mean(count, centre / inverse, powers)


class Repeats(NamedTuple):
    """The most frequent exact values of a tensor, most frequent first, as float32 on the host, and how often
    each occurs (int64).
    """

    values: torch.Tensor
    counts: torch.Tensor


@torch.no_grad()
def multiplicity(x: torch.Tensor, top: int = 1) -> Repeats:
    """The `top` most frequent exact values of `x` (float32, bfloat16 or float16, any shape; fewer where it
    has fewer distinct values). Zeros of either sign are one value, NaNs of any payload too; of values
    equally frequent the one with the smaller bit pattern, read as a signed integer, comes first. Waits for
    the device.
    """
    flat = _flatten(x)
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
    """The quantiles `q` (each in [0, 1]) of all elements of `x`, float32 [len(q)] on its device,
    interpolated linearly between order statistics; NaN if `x` holds a NaN. No limit on the number of
    elements but memory.
    """
    flat = _flatten(x).to(torch.float32)
    if not flat.numel() or not all(0.0 <= level <= 1.0 for level in q):
        raise UsageError(
            f"quantiles {list(q)} of {flat.numel()} elements: levels in [0, 1] of at least one element"
        )
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
    """How many elements of `x` lie in each bin, int64 [len(edges) - 1] on its device. Bin i holds edges[i]
    <= x < edges[i + 1], the last one its upper edge too; elements outside and NaNs are in none. Edges are
    rounded to float32 and must then increase, or a UsageError says so.
    """
    host = torch.as_tensor(edges, dtype=torch.float32, device="cpu")
    if host.dim() != 1 or len(host) < 2 or not bool((host[1:] > host[:-1]).all()):
        raise UsageError(f"histogram edges {host.tolist()}: give at least two, strictly increasing")
    bins, last = len(host) - 1, float(host[-1])
    device_edges = host.to(x.device)
    total = torch.zeros(bins + 2, dtype=torch.int64, device=x.device)
    for piece in torch.split(_flatten(x), _DEVICE_CHUNK):
        values = piece.to(torch.float32)
        place = torch.bucketize(values, device_edges, right=True)
        place = torch.where(values == last, bins, place)
        total += torch.bincount(place, minlength=bins + 2)
    return total[1:-1]


def even_edges(low: float, high: float, bins: int) -> list[float]:
    """`bins + 1` evenly spaced edges from `low` to `high`, computed on the host so that every device gets
    the same ones.
    """
    return [low + (high - low) * index / bins for index in range(bins)] + [high]


def _flatten(x: torch.Tensor) -> torch.Tensor:
    if not x.is_floating_point():
        raise UsageError(
            f"statistics of a tensor of dtype {x.dtype} were asked for: give a floating-point tensor"
        )
    return x.detach().reshape(-1)


def _row_sums(rows: torch.Tensor) -> torch.Tensor:
    """Per row [6, R]: the power of two it was scaled by, its centre, and the power sums about the centre."""
    values = rows.to(torch.float32)
    exponent = values.abs().amax(-1, keepdim=True).view(torch.int32) & _EXPONENT
    inverse = (_ONE_TWICE - exponent).clamp_(min=1 << 23).view(torch.float32)
    values = values * inverse
    centre = values.mean(-1, keepdim=True)
    deviation = values.sub_(centre)
    square = deviation * deviation
    first, second = deviation.sum(-1), square.sum(-1)
    third = deviation.mul_(square).sum(-1)
    return torch.stack([inverse[:, 0], centre[:, 0], first, second, third, square.square_().sum(-1)])


def _around_common_mean(count: torch.Tensor, centre: torch.Tensor, sums: list[torch.Tensor]) -> Moments:
    """Join parts given by their power sums about a centre each; float64 on the host."""
    first, second, third, fourth = sums
    total = count.sum()
    mean = (count * centre + first).sum() / total
    shift = centre - mean
    m2 = second + 2 * shift * first + count * shift**2
    m3 = third + 3 * shift * second + 3 * shift**2 * first + count * shift**3
    m4 = fourth + 4 * shift * third + 6 * shift**2 * second + 4 * shift**3 * first + count * shift**4
    return Moments(int(total), float(mean), float(m2.sum()), float(m3.sum()), float(m4.sum()))


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
