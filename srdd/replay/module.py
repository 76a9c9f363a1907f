"""Replay one module on its clean copy, its own arithmetic alone: what its submodules returned is taken from the
device.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hal.clean_outside import is_lookup, is_product
from hal.shipped_torch import torch_as_shipped
from srdd.probes.samples import least_rounding
from srdd.replay.accumulation import product_spread
from srdd.replay.arithmetic import LARGE, Draw, OnlyIEEE, RoundingSpread, WideArithmetic, accumulator_limit, widened
from srdd.replay.cache_reads import reads_in
from srdd.replay.capture import ModuleCall, map_tensors, tensors_in, where_given
from srdd.replay.diverged import ReplayDivergedError
from srdd.replay.forwards import forwards_replaced

# What masks are filled with.
_MASKED = (-math.inf, torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min)

_NEARLY = 0.95  # of the largest number: roundings on the way may carry a value beyond it that is just within


def _nowhere() -> None:
    """Nothing leaves the range."""


@dataclass(frozen=True)
class Replay:
    """One module call on the host: `exact` float64 values, first the inputs handed to each submodule, then the
    output; `actual`, the device's values of the same shapes; and `spread(draws)`, the rounding spread of each,
    drawn when asked for. `given` is what it was computed from; `spoilt` says that not all of that is finite.
    `leaving` computes `out_of_range`; `whole`: submodules were run on the host too; `copied`: nothing was computed.
    """

    exact: list[torch.Tensor]
    actual: list[torch.Tensor]
    spread: Callable[[int], list[torch.Tensor]]
    given: Sequence[torch.Tensor] = ()
    spoilt: bool = False
    leaving: Callable[[], list[torch.Tensor] | None] = _nowhere
    whole: bool = False
    copied: bool = False

    @cached_property
    def out_of_range(self) -> list[torch.Tensor] | None:
        """For each exact value, which of its elements may come out as anything; None when there are none."""
        return self.leaving()

    @property
    def poisoned(self) -> bool:
        """Whether it was given NaN, or what overflows."""
        return is_poisoned(self.given)

    def pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each exact value with the device's."""
        return zip(self.exact, self.actual, strict=True)

    def errors(self) -> list[torch.Tensor]:
        """What the device's values are off by, in float64; zero where that is not a number."""
        return [torch.nan_to_num(actual.double() - exact, posinf=0.0, neginf=0.0) for exact, actual in self.pairs()]


def joined(replays: Sequence[Replay]) -> Replay | None:
    """Replays of calls that are alike as that of one larger batch; None where they are not alike in shape."""
    shapes = {tuple(value.shape for value in replay.exact) for replay in replays}
    if len(shapes) > 1 or not all(map(len, next(iter(shapes)))):
        return None

    def leaving() -> list[torch.Tensor] | None:
        masks = [replay.out_of_range for replay in replays]
        if all(mask is None for mask in masks):
            return None
        filled = [
            [torch.zeros_like(value, dtype=torch.bool) for value in replay.exact] if mask is None else mask
            for replay, mask in zip(replays, masks, strict=True)
        ]
        return _stacked(filled)

    return Replay(
        exact=_stacked([replay.exact for replay in replays]),
        actual=_stacked([replay.actual for replay in replays]),
        spread=lambda draws: _stacked([replay.spread(draws) for replay in replays]),
        given=[tensor for replay in replays for tensor in replay.given],
        spoilt=any(replay.spoilt for replay in replays),
        leaving=leaving,
        whole=any(replay.whole for replay in replays),
        copied=all(replay.copied for replay in replays),
    )


def _stacked(values: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.cat(list(alike)) for alike in zip(*values, strict=True)]


def replay_module(call: ModuleCall, clean: nn.Module, roundoff: float, seed: int) -> Replay:
    """Replay the module of `call` on its clean copy inside the layer `clean`. Where the copy's calls do not
    match the device's (another kernel for the experts of a mixture), it is replayed as a whole, submodules
    included; a ReplayDivergedError says that this gives other shapes too.
    """
    module = clean.get_submodule(call.name)
    if is_product(module) and not call.children:
        return _replay_linear(call, module, roundoff)
    if _only_copies(module) and call.args:
        looked_up = _looked_up(call, module).double()
        return Replay([looked_up], tensors_in(call.output), lambda _: [torch.zeros_like(looked_up)], copied=True)
    try:
        return replay_own(call, clean, roundoff, seed)
    except (ReplayDivergedError, RuntimeError):
        if any(inner.altered for inner in call.walk()):  # of which the host's parts know nothing
            raise
        return replay_whole(call, clean, roundoff, seed)


def replay_whole(call: ModuleCall, clean: nn.Module, roundoff: float, seed: int) -> Replay:
    """Replay the module of `call` with its submodules on its clean copy below `clean`. Raises ReplayDivergedError where
    it gives other shapes.
    """
    run = partial(_run_whole, call, clean.get_submodule(call.name))
    return replace(_replay(call, roundoff, seed, run, tensors_in(call.output)), whole=True)


def replay_own(call: ModuleCall, clean: nn.Module, roundoff: float, seed: int) -> Replay:
    """Replay the own arithmetic of the module of `call` on its clean copy below `clean`; what its submodules returned
    is the device's. Raises ReplayDivergedError, or what the module raises, where the calls do not match.
    """
    return _replay(
        call, roundoff, seed, partial(_run_own, call, clean, clean.get_submodule(call.name)), own_values(call)
    )


def _replay(call: ModuleCall, roundoff: float, seed: int, run: Draw, actual: list[torch.Tensor]) -> Replay:
    given = [*call.handed(), *(tensor for child in call.children for tensor in tensors_in(child.output))]
    given += [tensor for read in call.cache.returned for tensor in read] if call.cache and call.cache.stored else []
    limit, dtype = accumulator_limit([*call.handed(), *actual]), _dtype_of(call)
    exact = run(WideArithmetic(limit))
    if len(exact) != len(actual) or any(a.shape != b.shape for a, b in zip(exact, actual, strict=True)):
        raise ReplayDivergedError(f"'{call.name}' gives other tensors on the host than on the device")
    spoilt = not all(bool(tensor.isfinite().all()) for tensor in given)
    return Replay(
        exact,
        actual,
        RoundingSpread(run, exact, roundoff, seed, limit, least_rounding(dtype)),
        given,
        spoilt,
        partial(out_of_range, run, exact, actual, dtype),
    )


def out_of_range(
    run: Draw, exact: list[torch.Tensor], actual: list[torch.Tensor], dtype: torch.dtype
) -> list[torch.Tensor] | None:
    """Of each value that `run` computes, which elements may be anything where every step is kept in `dtype`. One that
    overflows on its way, as float16's scores may: kernels that do more in one step come to the exact one, others to
    infinity or NaN. And of those that came out so, one that does once small numbers vanish on its way, as the sum of
    scores does that a router divides by. None where there are none.
    """
    limits = torch.finfo(dtype)
    masks = None
    if limits.max < torch.finfo(torch.bfloat16).max:  # less than the accumulators' range
        bounded = run(WideArithmetic(_NEARLY * limits.max))
        masks = [~(narrow == wide) for narrow, wide in zip(bounded, exact, strict=True)]
    if any(bool((~ours.isfinite() & wide.isfinite()).any()) for ours, wide in zip(actual, exact, strict=True)):
        vanished = [~value.isfinite() for value in run(WideArithmetic(least=limits.smallest_normal))]
        masks = vanished if masks is None else [one | other for one, other in zip(masks, vanished, strict=True)]
    return masks


def _run_own(call: ModuleCall, clean: nn.Module, module: nn.Module, arithmetic: WideArithmetic) -> list[torch.Tensor]:
    """The module's own arithmetic: what its submodules return is taken from the device."""
    with _substituted(call, clean, arithmetic.given) as handed:
        output, stored = _forward(call, module, arithmetic)
    # The order of the device's calls, whatever order the copy made them in.
    own = [*(tensor for index in range(len(call.children)) for tensor in handed[index]), *_returned(call, output)]
    return [*own, *stored]


@dataclass(frozen=True)
class Native:
    """What the host makes of a call in the device's dtype; `determined` where that leaves a device no choice but to
    round in fewer steps.
    """

    values: list[torch.Tensor]
    determined: bool


def run_natively(call: ModuleCall, clean: nn.Module) -> Native | None:
    """The module's own values computed on the host in the device's dtype, in the order of `replay_module`; None where a
    device may do so in another way, unless it is all that an innermost module does, in a 16-bit format.
    """
    module = clean.get_submodule(call.name)
    x, held = _sixteen_bit(call), {}
    if is_product(module) and not call.children:
        return None if x is None else Native([_product(x, module)], True)
    if _only_copies(module) and call.args:
        return Native([_looked_up(call, module)], True)
    if any(True for _ in module.parameters(recurse=False)):
        if x is None or any(True for _ in module.children()):
            return None
        held = _narrowed(module, x.dtype)
    ieee = OnlyIEEE()
    try:
        # A layer may add to its parts' results in place.
        args, kwargs = map_tensors((call.args, call.kwargs), torch.clone)
        with torch_as_shipped(), _substituted(call, clean, torch.clone) as handed, torch.no_grad(), ieee:
            output = functional_call(module, held, args, kwargs)
    except (ReplayDivergedError, RuntimeError):
        return None
    if not ieee.only and (call.children or x is None):
        return None
    values = [*(tensor for index in range(len(call.children)) for tensor in handed[index]), *_returned(call, output)]
    return Native(values, ieee.only)


def _only_copies(module: nn.Module) -> bool:
    """Whether the module copies rows of a table, and rounds nothing."""
    return is_lookup(module) and module.max_norm is None


def _looked_up(call: ModuleCall, module: nn.Module) -> torch.Tensor:
    """The rows of the table, as the device holds them."""
    with torch_as_shipped(), torch.no_grad():
        return nn.functional.embedding(call.args[0], module.get_parameter("weight")).to(_dtype_of(call))


def _product(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    bias = module.bias.to(x.dtype) if isinstance(module.bias, torch.Tensor) else None
    with torch_as_shipped(), torch.no_grad():
        return nn.functional.linear(x, module.get_parameter("weight").to(x.dtype), bias)


def _narrowed(module: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What an innermost module holds, as the device holds it."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.to(dtype) for name, tensor in held.items() if tensor.is_floating_point()}


def _sixteen_bit(call: ModuleCall) -> torch.Tensor | None:
    """The call's first argument, if it is in a 16-bit format."""
    x = call.args[0] if call.args else None
    return x if isinstance(x, torch.Tensor) and x.is_floating_point() and x.element_size() == 2 else None


def _run_whole(call: ModuleCall, module: nn.Module, arithmetic: WideArithmetic) -> list[torch.Tensor]:
    return _returned(call, _forward(call, module, arithmetic)[0])


def _returned(call: ModuleCall, output: Any) -> list[torch.Tensor]:
    """What the host's copy returned where the device returned anything: fused attention gives no probabilities."""
    return tensors_in(where_given(output, call.output))


def _forward(call: ModuleCall, module: nn.Module, arithmetic: WideArithmetic) -> tuple[Any, list[torch.Tensor]]:
    """What the module returns, and what it stores in its cache."""
    with torch_as_shipped(), torch.no_grad(), arithmetic, sdpa_kernel(SDPBackend.MATH), _limits_of(_dtype_of(call)):
        args, kwargs = map_tensors((call.args, call.kwargs), arithmetic.given)
        output = module(*args, **kwargs)
        cache = reads_in([*args, *kwargs.values()])
        return output, cache.stored if cache else []


def _dtype_of(call: ModuleCall) -> torch.dtype:
    tensors = [*call.handed(), *tensors_in(call.output)]
    return tensors[0].dtype if tensors else torch.float32


@contextmanager
def _limits_of(dtype: torch.dtype) -> Iterator[None]:
    """Answer code that asks for the limits of its activations' dtype with those of `dtype`, the device's, not with
    those of the float64 that stands for it: masks are filled with them.
    """
    limits = torch.finfo

    def finfo(asked: torch.dtype | None = None) -> torch.finfo:
        return limits(dtype) if asked is torch.float64 else limits(*([] if asked is None else [asked]))

    torch.finfo = finfo  # type: ignore[misc, assignment]  # a class, which nobody here subclasses
    try:
        yield
    finally:
        torch.finfo = limits  # type: ignore[misc]  # as above


def own_values(call: ModuleCall) -> list[torch.Tensor]:
    """What the device's module made by its own arithmetic: what it handed to each submodule, then what it returned, and
    what it stored in its cache.
    """
    own = [*(tensor for child in call.children for tensor in child.handed()), *tensors_in(call.output)]
    return [*own, *(call.cache.stored if call.cache else [])]


@contextmanager
def _substituted(
    call: ModuleCall, clean: nn.Module, returned: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[dict[int, list[torch.Tensor]]]:
    """Let each submodule called in `call` return what the device's `returned`, and note what it was handed, by
    the call's position.
    """
    queues: dict[str, list[int]] = defaultdict(list)
    for position, child in enumerate(call.children):
        queues[child.name].append(position)
    handed: dict[int, list[torch.Tensor]] = {}
    stand_ins = {
        clean.get_submodule(name): _stand_in(call, positions, handed, returned) for name, positions in queues.items()
    }
    with forwards_replaced(stand_ins):
        yield handed
    if len(handed) != len(call.children):
        raise ReplayDivergedError(f"'{call.name}' called fewer submodules on the host than on the device")


def _stand_in(
    call: ModuleCall,
    positions: list[int],
    handed: dict[int, list[torch.Tensor]],
    returned: Callable[[torch.Tensor], torch.Tensor],
) -> Any:
    remaining = iter(positions)

    def forward(*args: Any, **kwargs: Any) -> Any:
        position = next(remaining, None)
        if position is None:
            raise ReplayDivergedError(f"'{call.name}' called a submodule more often on the host than on the device")
        handed[position] = [tensor.clone() for tensor in call.children[position].compared(args, kwargs)]
        return map_tensors(call.children[position].output, returned)

    return forward


def _replay_linear(call: ModuleCall, module: nn.Linear, roundoff: float) -> Replay:
    """A matrix product needs no drawing: its rounding spread has a closed form."""
    x = widened(call.args[0])
    with torch_as_shipped(), torch.no_grad():
        exact = nn.functional.linear(x, module.weight, module.bias)

    def spread(_draws: int) -> list[torch.Tensor]:
        return [roundoff * exact.abs() + product_spread(x, module.weight.detach().T, exact)]

    return Replay([exact], tensors_in(call.output), spread, [x])


def is_poisoned(given: Iterable[torch.Tensor]) -> bool:
    """Whether NaN is among the values, or one so large that sums of products may leave float32, where the order in
    which a kernel adds decides what comes of it; other than those that masks are filled with.
    """
    return any(_is_poisoned(tensor) for tensor in given)


def _is_poisoned(tensor: torch.Tensor) -> bool:
    large = tensor[~(tensor.abs() <= LARGE)]  # NaN too
    return not bool(torch.isin(large, torch.tensor(_MASKED, dtype=tensor.dtype)).all())
