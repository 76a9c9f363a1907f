"""Turn a replayed call into the numbers of a SiteReplay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from srdd.measurements import Transfer
from srdd.probes.samples import Array, to_host
from srdd.probes.transfer import describe_transfer
from srdd.replay.arithmetic import WideArithmetic, may_overflow, rounding_spread, widened
from srdd.replay.capture import ModuleCall, OperatorCall, map_tensors, tensors_in
from srdd.replay.module import Replay, replay_module

DRAWS = (8, 48)
SURE = 0.5  # a few draws may understate the spread twofold: beyond this they are not trusted, either way
# The spread is sampled from runs with every rounding at its largest. Real roundings are uniform below that
# (a standard deviation sqrt(3) smaller), so 8 of these are about 14 standard deviations of a healthy device.
WIDTH = 8.0
LAST_ROUNDINGS = 2.0  # and two roundings of the result itself, for kernels that fuse what the host does in steps


@dataclass(frozen=True)
class Comparison:
    """One replayed call: where (`name` below the layer, `operator`), and how its values transfer."""

    name: str
    operator: str
    transfer: Transfer


def compare_call(
    call: ModuleCall, clean: nn.Module, dtype: torch.dtype, seed: int, draws: Sequence[int] = DRAWS
) -> list[Comparison]:
    """Compare one module's own arithmetic with the device's; where it fails, its operators too. The spread is drawn
    `draws[0]` times, and again with each further number as long as the values still seem to differ.
    """
    replay = replay_module(call, clean, float(torch.finfo(dtype).eps) / 2, seed)
    own = Comparison(call.name, "", _worst(replay, dtype, draws))
    if own.transfer.violation <= 1:
        return [own]
    return [own, *(_compare_operator(entry, dtype, seed, draws) for entry in call.operators)]


def _compare_operator(call: OperatorCall, dtype: torch.dtype, seed: int, draws: Sequence[int]) -> Comparison:
    def run(arithmetic: WideArithmetic) -> list[torch.Tensor]:
        with torch.no_grad(), arithmetic, sdpa_kernel(SDPBackend.MATH):
            return tensors_in(call.function(*map_tensors(call.args, widened), **map_tensors(call.kwargs, widened)))

    overflowing = may_overflow([*tensors_in(call.args), *tensors_in(call.kwargs)])
    exact = run(WideArithmetic(overflowing))
    roundoff = float(torch.finfo(dtype).eps) / 2
    replay = Replay(
        exact,
        tensors_in(call.result),
        lambda draws: rounding_spread(run, exact, roundoff, draws, seed, overflowing),
    )
    return Comparison(call.module, call.name, _worst(replay, dtype, draws))


def _worst(replay: Replay, dtype: torch.dtype, draws: Sequence[int]) -> Transfer:
    """The worst transfer of the call's values. The spread is drawn only where the last rounding alone does not
    explain the difference, which most modules of a healthy device never need, and drawn more often before
    anything is accused: a softmax near a tie may jump in one draw of many.
    """
    worst = _worst_given(replay, [torch.zeros_like(value) for value in replay.exact], dtype)
    if worst.violation <= 1:
        # Whatever was computed has a spread of one rounding at least, so its share of the whole allowance is known.
        return replace(worst, violation=worst.violation * LAST_ROUNDINGS / (LAST_ROUNDINGS + WIDTH))
    for number in draws:
        if worst.violation <= SURE:
            break
        worst = _worst_given(replay, replay.spread(number), dtype)
    return worst


def _worst_given(replay: Replay, spread: list[torch.Tensor], dtype: torch.dtype) -> Transfer:
    transfers = [
        describe_transfer(
            _rows(value),
            _rows(returned),
            _allowance(_rows(value), _rows(deviation), dtype),
            float(torch.finfo(dtype).eps) / 2,
        )
        for value, deviation, returned in zip(replay.exact, spread, replay.actual, strict=True)
        if value.numel()
    ]
    return max(transfers, key=lambda transfer: transfer.violation)


def _rows(tensor: torch.Tensor) -> Array:
    return to_host(tensor if tensor.dim() else tensor.reshape(1))


def _allowance(exact: Array, spread: Array, dtype: torch.dtype) -> Array:
    """What rounding may do to each element; anything beyond the dtype's range may come back as anything."""
    limits = torch.finfo(dtype)
    # A flushed subnormal, or an exponential that overflowed inside a bounded function, costs about this much.
    floor = max(limits.smallest_normal, 2.0**10 * torch.finfo(torch.float32).smallest_normal)
    allowance = WIDTH * spread + LAST_ROUNDINGS * limits.eps / 2 * np.abs(exact) + floor
    return np.where(np.abs(exact) > 0.99 * limits.max, np.inf, allowance)
