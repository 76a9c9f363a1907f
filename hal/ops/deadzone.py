"""The dead zone: values small against the largest become zero, as low-bit formats make them."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch

from hal.errors import UsageError
from hal.ops.catalogue import Arguments, Op, register
from hal.ops.precision import host64
from hal.ops.sampling import SampleSpec

Scope = Literal["tensor", "token"]


def deadzone(x: torch.Tensor, threshold: float, scope: Scope = "tensor") -> torch.Tensor:
    """`x` with zeros where `abs(x) < threshold * max(abs(x))`; the gradient is zero exactly there and passes unchanged
    elsewhere. See `survivors` for the rules.
    """
    return torch.where(survivors(x, threshold, scope), x, 0.0)


@torch.no_grad()
def survivors(x: torch.Tensor, threshold: float, scope: Scope = "tensor") -> torch.Tensor:
    """Which elements of `x` (any shape, floating) the dead zone lets through, boolean. The maximum is that of the
    whole tensor, or with scope "token" of each vector along the last dimension, over finite elements only; Inf and NaN
    always survive. The product with `threshold` is one float32 multiplication, so the mask is the same on every
    device. An element equal to the product survives: so does every one where all are equal, or all are zero. A
    threshold outside [0, 1] or an unknown scope is a UsageError.
    """
    _check(threshold, scope)
    if not x.numel():
        return torch.ones_like(x, dtype=torch.bool)
    size = x.abs().float()
    # Non-finite elements must not set the maximum: with Inf everything else would die, with NaN nothing.
    finite = size.nan_to_num(0.0, 0.0)
    largest = finite.amax() if scope == "tensor" else finite.amax(-1, keepdim=True)
    return ~(size < largest * threshold)


def _check(threshold: float, scope: str) -> None:
    if not 0.0 <= threshold <= 1.0:
        raise UsageError(f"dead-zone threshold is {threshold}: give a fraction of the maximum, from 0 to 1")
    if scope not in get_args(Scope):
        raise UsageError(f"dead-zone scope is '{scope}': choose 'tensor' or 'token'")


def _reference(x: torch.Tensor, threshold: float, scope: Scope = "tensor") -> torch.Tensor:
    wide = host64(x)
    rows = wide.detach().reshape(1, -1) if scope == "tensor" else wide.detach().reshape(-1, x.shape[-1])
    keep = []
    for row in rows.tolist():
        largest = max((abs(value) for value in row if math.isfinite(value)), default=0.0)
        limit = float(np.float32(largest) * np.float32(threshold))
        keep.append([not abs(value) < limit for value in row])
    return wide * torch.tensor(keep).view(x.shape) if x.numel() else wide


def _sample(spec: SampleSpec) -> Arguments:
    x = spec.data("x", *spec.pick(tiny=(2, 8), odd=(3, 5, 37), large=(64, 1024)))
    return x, 0.1, "token" if spec.size == "odd" else "tensor"


DEADZONE = register(
    Op(
        "deadzone",
        'deadzone(x[..., D], threshold: float, scope: "tensor" | "token" = "tensor") -> [..., D]',
        deadzone,
        _reference,
        _sample,
        exact=True,
    )
)
