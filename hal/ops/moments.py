"""Moments of a tensor in one pass: size, mean, variance, skewness, kurtosis, mergeable across chunks.

Device work is float32, never float64, which some accelerators narrow without saying so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from hal.errors import UsageError
from hal.ops.catalogue import Arguments, Op, register
from hal.ops.precision import host64
from hal.ops.sampling import SampleSpec

ROW = 4096  # elements summed in float32 before the host goes on in float64
_HOST_CHUNK = 16 * ROW
_DEVICE_CHUNK = 4096 * ROW
_EXPONENT = 0x7F800000  # exponent field of a float32
_ONE_TWICE = 254 << 23  # twice the exponent field of 1.0


class Moments(NamedTuple):
    """Number of elements, their mean, and the sums of the second to fourth powers of their deviations from it (Pébay,
    SAND2008-6212): enough to merge chunks exactly. Non-finite elements make all but the size NaN.
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
    """Moments of all elements of `x` (any shape, floating) in one pass: rows of 4096 elements are scaled by an exact
    power of two and summed about their own mean in float32, then joined in float64 on the host, so neither a large
    offset nor values near overflow lose accuracy. Waits for the device.
    """
    flat = flatten(x)
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


def flatten(x: torch.Tensor) -> torch.Tensor:
    """All elements of a floating tensor of any shape, detached; another dtype is a UsageError."""
    if not x.is_floating_point():
        raise UsageError(f"statistics of a tensor of dtype {x.dtype} were asked for: give a floating-point tensor")
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


def _reference(x: torch.Tensor) -> Moments:
    values = host64(x.detach()).flatten()
    if not values.isfinite().all():
        return Moments(values.numel(), math.nan, math.nan, math.nan, math.nan)
    deviation = values - values.mean()
    sums = (float((deviation**power).sum()) for power in (2, 3, 4))
    return Moments(values.numel(), float(values.mean()), *sums)


def _error_scale(x: torch.Tensor) -> Moments:
    """Sums of the sizes of the terms, with room for a row's mean to differ from the whole's."""
    values = host64(x.detach()).flatten()
    spread = (values - values.mean()).abs()
    spread = spread + spread.square().mean().sqrt()
    sums = (float((spread**power).sum()) for power in (2, 3, 4))
    return Moments(0, float(values.mean().abs() + spread.mean()), *sums)


def _sample(spec: SampleSpec) -> Arguments:
    return (spec.data("x", *spec.pick(tiny=(2, 8), odd=(3, 5, 37), large=(64, 1027))),)


MOMENTS = register(
    Op(
        "moments",
        "moments(x[...]) -> Moments(size, mean, m2, m3, m4)",
        moments,
        _reference,
        _sample,
        differentiable=False,
        error_scale=_error_scale,
    )
)
