"""Turn a replayed call into the numbers of a SiteReplay."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hal.shipped_torch import torch_as_shipped
from hal.skeleton import has_other_kernels
from srdd.measurements import Transfer
from srdd.probes.samples import Array, least_rounding, several_roundings, to_host, unit_roundoff
from srdd.probes.transfer import describe_transfer, excess, largest_excess, no_violation
from srdd.replay.arithmetic import WIDTH, RoundingSpread, WideArithmetic, accumulator_limit, widened
from srdd.replay.capture import ModuleCall, OperatorCall, map_tensors, tensors_in
from srdd.replay.drift import UNASKED, Lean, lean, rounding_drift, strongest
from srdd.replay.low_bits import missing_bit
from srdd.replay.module import Replay, joined, out_of_range, replay_module, replay_whole

DRAWS = (4, 6, 8, 24, 48)  # few draws may understate an element's spread several times: they may acquit, not accuse
FEW = DRAWS[:3]  # where a module is known to differ
CLEARLY = 0.5  # of the allowance: by no more do fewer than eight draws, which may overstate it too, acquit
LAST_ROUNDINGS = 2.0  # and two roundings of the result itself, for kernels that fuse what the host does in steps
COPIED = 0.25  # of a rounding: less than the last bit


@dataclass(frozen=True)
class Comparison:
    """One replayed call: where (`name` below the layer, `operator`; `of_input`: what the module was handed, not what it
    made), how its values transfer, which way they `lean`, whether it differs `poisoned` by what it was given, and
    whether it was replayed as a `whole`, its submodules on the host.
    """

    name: str
    operator: str
    transfer: Transfer
    lean: Lean = UNASKED
    of_input: bool = False
    poisoned: bool = False
    whole: bool = False


def compare_call(
    call: ModuleCall,
    clean: nn.Module,
    dtype: torch.dtype,
    seed: int,
    draws: Sequence[int],
    drift: bool,
    inner: torch.dtype | None = None,
) -> list[Comparison]:
    """Compare one module's own arithmetic with the device's; where it fails, its operators too. The spread is drawn
    `draws[0]` times, and up to each further number as long as the values are not clearly within it. `drift` asks
    whether roundings lean one way, or take a bit from all values, too. `inner` is the dtype that the module computes in
    before it rounds its result to `dtype`, that same if left out.
    """
    replay = replay_module(call, clean, unit_roundoff(inner or dtype), seed)
    leaning = _leaning(call, clean, replay, dtype) if drift else UNASKED
    own = _comparison(call.name, "", replay, _worst(replay, dtype, draws), leaning)
    if own.transfer.violation > 1 and call.children and has_other_kernels(clean.get_submodule(call.name)):
        # Parts called as often, but on rows in another order, look like a fault of what hands them on.
        whole = replay_whole(call, clean, unit_roundoff(inner or dtype), seed)
        own = min(own, _comparison(call.name, "", whole, _worst(whole, dtype, draws), leaning), key=_violation)
    if own.transfer.violation <= 1:
        truncated = _truncated(call, dtype) if drift else []
        return [replace(own, lean=UNASKED), *truncated] if truncated else [own]
    return [own, *(_compare_operator(entry, dtype, seed, draws) for entry in call.operators)]


def _leaning(call: ModuleCall, clean: nn.Module, replay: Replay, dtype: torch.dtype) -> Lean:
    """Which way the call's own values lean, or whether they lack a bit."""
    missing = [
        Lean(missing_bit(actual, exact.double)) for exact, actual in replay.pairs() if _could_lack_a_bit(actual, dtype)
    ]
    return strongest([rounding_drift(call, clean, replay.exact, replay.actual), *missing])


def _truncated(call: ModuleCall, dtype: torch.dtype) -> list[Comparison]:
    """The operators of the call whose results lack a bit."""
    found = []
    for entry in call.operators:
        actual = entry.result
        if _could_lack_a_bit(actual, dtype):
            missing = missing_bit(actual, partial(_on_host, entry))
            if missing > 1:
                transfer = no_violation(0.0, actual.shape[-1])
                found.append(Comparison(entry.module, entry.name, transfer, Lean(missing)))
    return found


def _could_lack_a_bit(actual: Any, dtype: torch.dtype) -> bool:
    """Not what is widened, whose last bits are zero, and not a tensor without elements."""
    return isinstance(actual, torch.Tensor) and actual.dtype == dtype and actual.dim() > 0 and actual.numel() > 0


def compare_together(calls: Sequence[ModuleCall], clean: nn.Module, dtype: torch.dtype, seed: int) -> list[Comparison]:
    """Compare calls of one module, and of its operators, as the rows of one call, where they are alike in shape."""
    replays = [replay_module(call, clean, unit_roundoff(dtype), seed) for call in calls]
    found = _together(calls[0].name, "", replays, dtype)
    if len({tuple(entry.name for entry in call.operators) for call in calls}) == 1:
        for alike in zip(*(call.operators for call in calls), strict=True):
            replays = [_replay_operator(entry, dtype, seed) for entry in alike]
            found += _together(alike[0].module, alike[0].name, replays, dtype)
    return found


def _together(name: str, operator: str, replays: Sequence[Replay], dtype: torch.dtype) -> list[Comparison]:
    one = joined(replays)
    return [] if one is None else [_comparison(name, operator, one, _worst(one, dtype, FEW))]


def _violation(comparison: Comparison) -> float:
    return comparison.transfer.violation


def compare_value(replay: Replay, index: int, dtype: torch.dtype) -> Transfer:
    """How one of the replay's values transfers, by its number."""
    one = Replay(
        [replay.exact[index]],
        [replay.actual[index]],
        lambda draws: [replay.spread(draws)[index]],
        spoilt=replay.spoilt,
        leaving=lambda: None if replay.out_of_range is None else [replay.out_of_range[index]],
    )
    return _worst(one, dtype, DRAWS)


def violating(replay: Replay, dtype: torch.dtype) -> list[torch.Tensor]:
    """For each value of the replay, which of its elements differ by more than rounding."""
    spreads = replay.spread(FEW[-1])
    values = _values(replay, dtype, replay.out_of_range)
    masks = [entry.beyond(_rows(spread)) for entry, spread in zip(values, spreads, strict=True)]
    return [torch.from_numpy(mask).reshape(value.shape) for mask, value in zip(masks, replay.exact, strict=True)]


def within_rounding(replay: Replay, dtype: torch.dtype) -> bool:
    """Whether every value of the device is within what rounding may do to it."""
    return _worst(replay, dtype, DRAWS).violation <= 1


def _compare_operator(call: OperatorCall, dtype: torch.dtype, seed: int, draws: Sequence[int]) -> Comparison:
    replay = _replay_operator(call, dtype, seed)
    return _comparison(call.module, call.name, replay, _worst(replay, dtype, draws))


def _replay_operator(call: OperatorCall, dtype: torch.dtype, seed: int) -> Replay:
    def run(arithmetic: WideArithmetic) -> list[torch.Tensor]:
        return tensors_in(_on_host(call, arithmetic))

    given = [*tensors_in(call.args), *tensors_in(call.kwargs)]
    limit = accumulator_limit(given)
    exact = run(WideArithmetic(limit))
    roundoff = unit_roundoff(dtype)
    actual = tensors_in(call.result)
    return Replay(
        exact,
        actual,
        RoundingSpread(run, exact, roundoff, seed, limit, least_rounding(dtype)),
        given,
        leaving=partial(out_of_range, run, exact, actual, dtype),
    )


def compare_mean(call: OperatorCall) -> Comparison | None:
    """Which way an operator leans that took means of values that were equal: in a 16-bit format its result is known to
    the last bit. How large its errors are is asked of its module. Each row of weights counts once, which is a row of
    what the operator was given first. None for other formats.
    """
    actual: torch.Tensor = call.result
    weights = next(iter(tensors_in(call.args)), None)
    if weights is None or weights.shape[:-1] != actual.shape[:-1] or actual.element_size() != 2:
        return None
    exact = _on_host(call)
    leaning = lean(exact.to(actual.dtype), exact, actual, determined=True, given=weights)
    return Comparison(call.module, call.name, no_violation(0.0, actual.shape[-1]), leaning)


def _on_host(call: OperatorCall, arithmetic: AbstractContextManager[Any] | None = None) -> Any:
    """What the operator makes of the same arguments in float64, by the `arithmetic` if that is given."""
    with torch_as_shipped(), torch.no_grad(), arithmetic or nullcontext(), sdpa_kernel(SDPBackend.MATH):
        return call.function(*map_tensors(call.args, widened), **map_tensors(call.kwargs, widened))


def _comparison(name: str, operator: str, replay: Replay, transfer: Transfer, leaning: Lean = UNASKED) -> Comparison:
    """What was given matters, and is looked through, only where a call differs."""
    poisoned = transfer.violation > 1 and replay.poisoned
    return Comparison(name, operator, transfer, leaning, poisoned=poisoned, whole=replay.whole)


def _worst(replay: Replay, dtype: torch.dtype, draws: Sequence[int]) -> Transfer:
    """The worst transfer of the call's values. The spread is drawn only where the last rounding alone does not
    explain the difference, which most modules of a healthy device never need, and drawn more often before
    anything is accused: a softmax near a tie may jump in one draw of many.
    """
    values = _occupied(_values(replay, dtype))
    worst = max(entry.violation(None) for entry in values)
    if worst > 1 and replay.out_of_range is not None:
        values = _occupied(_values(replay, dtype, replay.out_of_range))
        worst = max(entry.violation(None) for entry in values)
    if worst <= 1:
        # Whatever was computed has a spread of one rounding at least, so its share of the whole allowance is known.
        return no_violation(worst * LAST_ROUNDINGS / (LAST_ROUNDINGS + WIDTH), values[0].expected.shape[-1])
    for number in draws:
        spreads = [_rows(spread) for spread in replay.spread(number) if spread.numel()]
        violations = [entry.violation(spread) for entry, spread in zip(values, spreads, strict=True)]
        worst = max(violations)
        if worst <= (CLEARLY if number < FEW[-1] else 1):
            break
    index = violations.index(worst)
    return values[index].transfer(spreads[index])


@dataclass(frozen=True)
class _Values:
    """One tensor of a replayed call, [rows, units]: what it should be, and what the device made of it. `roundings`: of
    the result itself. `spoilt`: of inputs that are not all finite. `out_of_range`: the elements that may be anything.
    """

    expected: Array
    actual: Array
    dtype: torch.dtype
    roundings: float
    spoilt: bool
    out_of_range: NDArray[np.bool_] | None

    def violation(self, spread: Array | None) -> float:
        return largest_excess(self.expected, self.actual, self._allowance(spread))

    def beyond(self, spread: Array) -> NDArray[np.bool_]:
        return excess(self.expected, self.actual, self._allowance(spread)) > 1

    def transfer(self, spread: Array) -> Transfer:
        roundoff = unit_roundoff(self.dtype)
        return describe_transfer(self.expected, self.actual, self._allowance(spread), roundoff)

    def _allowance(self, spread: Array | None) -> Array:
        """What rounding may do to each element."""
        if spread is None:
            return self._last
        with np.errstate(over="ignore"):  # where draws overflow, nothing is known
            return self._last + WIDTH * np.where(np.isnan(spread), np.inf, spread)

    @cached_property
    def _last(self) -> Array:
        """What the result's own roundings may do; anything beyond the dtype's range may come back as anything."""
        limits = torch.finfo(self.dtype)
        allowance = several_roundings(self.roundings, self.expected, self.dtype)
        allowance[np.abs(self.expected) > 0.99 * limits.max] = np.inf
        # What a kernel makes of NaN is its own affair: a fused attention may skip a row that has one.
        if self.spoilt:
            allowance[~np.isfinite(self.expected)] = np.inf
        if self.out_of_range is not None:
            allowance[self.out_of_range] = np.inf
        return allowance


def _values(replay: Replay, dtype: torch.dtype, out_of_range: Sequence[torch.Tensor] | None = None) -> list[_Values]:
    masks = [None] * len(replay.exact) if out_of_range is None else [_rows(mask) > 0 for mask in out_of_range]
    roundings = COPIED if replay.copied else LAST_ROUNDINGS
    return [
        _Values(_rows(exact), _rows(actual), dtype, roundings, replay.spoilt, mask)
        for (exact, actual), mask in zip(replay.pairs(), masks, strict=True)
    ]


def _occupied(values: list[_Values]) -> list[_Values]:
    """Those with elements: an expert to which no token was routed has none."""
    return [entry for entry in values if entry.expected.size]


def _rows(tensor: torch.Tensor) -> Array:
    if not tensor.numel():
        return np.empty((0, 1))
    return to_host(tensor if tensor.dim() else tensor.reshape(1))
