"""What each fault kind does to a tensor. `x` is the healthy value, [..., units]; the result has its shape and
dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from srdd.faults.bits import flip_bits, round_low_bits, stick_bits
from srdd.faults.random_source import RandomSource
from srdd.faults.specification import MODES, Fault

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
    normal = RandomSource(fault.draws)
    return lambda x: x + fault.magnitude * x.abs().mean() * normal(x)


def _spike(fault: Fault) -> Corruption:
    normal = RandomSource(fault.draws)

    def corrupt(x: torch.Tensor) -> torch.Tensor:
        hit = normal.uniform(x) < 0.01 * fault.magnitude
        return torch.where(hit, 10 * x.abs().max() * normal(x), x)

    return corrupt


def _non_determinism(fault: Fault) -> Corruption:
    normal = RandomSource(fault.draws)
    factor = fault.factor
    mode = fault.mode or MODES["non_determinism"][0]

    def corrupt(x: torch.Tensor) -> torch.Tensor:
        base = BASE_STD * _std(x)
        if mode == "suppressed":
            return x + base / factor * normal(x)
        if mode == "inconsistent":
            return x + base * float(factor ** (2 * normal.scalar() - 1)) * normal(x)
        if mode == "biased":
            return x + base * (factor * normal.scalar() + normal(x))
        if mode == "correlated":
            return x + base * factor * normal(x[..., :1]).expand_as(x)
        return x + base * factor * normal(x)

    return corrupt


def _bit_flip(fault: Fault) -> Corruption:
    return lambda x: flip_bits(x, fault.bits or "exponent", fault.seed)


def _stuck_at(fault: Fault) -> Corruption:
    if fault.bits:
        return lambda x: stick_bits(x, fault.bits, int(fault.value), fault.seed)
    return lambda x: torch.full_like(x, fault.value)


def _scale(fault: Fault) -> Corruption:
    return lambda x: x * fault.factor


def _sign_flip(_fault: Fault) -> Corruption:
    return torch.neg


def _rounding(fault: Fault) -> Corruption:
    return lambda x: round_low_bits(x, fault.bits or "0", away=fault.mode == "away")


def _flush_subnormals(_fault: Fault) -> Corruption:
    return lambda x: torch.where(x.abs() < torch.finfo(x.dtype).smallest_normal, torch.zeros_like(x), x)


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
    "bit_flip": _bit_flip,
    "stuck_at": _stuck_at,
    "scale": _scale,
    "sign_flip": _sign_flip,
    "rounding": _rounding,
    "flush_subnormals": _flush_subnormals,
    "wrong_constant": _scale,  # of the constant, a tensor of one element
}
