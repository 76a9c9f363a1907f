"""What each fault kind does to a tensor. `x` is the healthy value, [..., units]; the result has its shape and
dtype.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import torch

from srdd.faults.specification import Fault

Corruption = Callable[[torch.Tensor], torch.Tensor]

BASE_STD = 0.01  # non_determinism: healthy run-to-run noise, as a share of std(x)


def corruption(fault: Fault) -> Corruption:
    """The function x -> corrupted x of one fault, applied to all units; it keeps its own state (a generator, a
    threshold) from call to call.
    """
    return _BUILDERS[fault.kind](fault)


def _dead_zone(fault: Fault) -> Corruption:
    def corrupt(x: torch.Tensor) -> torch.Tensor:
        threshold = fault.magnitude * x.abs().max()
        return torch.where(x.abs() < threshold, torch.zeros_like(x), x)

    return corrupt


def _saturation(fault: Fault) -> Corruption:
    fixed: list[torch.Tensor] = []

    def corrupt(x: torch.Tensor) -> torch.Tensor:
        threshold = (1 - fault.magnitude) * x.abs().max()
        if fault.absolute:
            fixed[:] = fixed or [threshold]
            threshold = fixed[0].to(x.device, x.dtype)
        return torch.clamp(x, -threshold, threshold)

    return corrupt


def _bias(fault: Fault) -> Corruption:
    return lambda x: x + fault.magnitude * _std(x)


def _noise(fault: Fault) -> Corruption:
    normal = _NormalSource()
    return lambda x: x + fault.magnitude * x.abs().mean() * normal(x)


def _spike(fault: Fault) -> Corruption:
    normal = _NormalSource()

    def corrupt(x: torch.Tensor) -> torch.Tensor:
        hit = normal.uniform(x) < 0.01 * fault.magnitude
        return torch.where(hit, 10 * x.abs().max() * normal(x), x)

    return corrupt


def _non_determinism(fault: Fault) -> Corruption:
    normal = _NormalSource()
    factor = fault.factor

    def corrupt(x: torch.Tensor) -> torch.Tensor:
        base = BASE_STD * _std(x)
        if fault.mode == "suppressed":
            return x + base / factor * normal(x)
        if fault.mode == "inconsistent":
            return x + base * float(factor ** (2 * normal.scalar() - 1)) * normal(x)
        if fault.mode == "biased":
            return x + base * (factor * normal.scalar() + normal(x))
        if fault.mode == "correlated":
            return x + base * factor * normal(x[..., :1]).expand_as(x)
        return x + base * factor * normal(x)

    return corrupt


class _NormalSource:
    """Random numbers that differ on every run and never touch the program's own generators."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(secrets.randbits(63))

    def __call__(self, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=self._generator).to(like.device, like.dtype)

    def uniform(self, like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=self._generator).to(like.device)

    def scalar(self) -> float:
        return float(torch.rand((), generator=self._generator))


def _std(x: torch.Tensor) -> torch.Tensor:
    # float32: a float16 sum of squares overflows where the standard deviation itself does not.
    std: torch.Tensor = x.float().std(correction=0).to(x.dtype)
    return std


_BUILDERS: dict[str, Callable[[Fault], Corruption]] = {
    "dead_zone": _dead_zone,
    "saturation": _saturation,
    "bias": _bias,
    "noise": _noise,
    "spike": _spike,
    "non_determinism": _non_determinism,
}
