"""Run one part of a layer alone on the device, on a changed input, and record it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from hal.structure import dotted
from srdd.replay.capture import ModuleCall, map_tensors, record
from srdd.replay.constants import constants_of
from srdd.replay.diverged import ReplayDivergedError
from srdd.replay.forwards import forwards_replaced
from srdd.replay.raised import Raise, raising

AMPLIFICATION = -(2.0**6)  # of a submodule's input: larger than its data, and of the other sign
TINY = 2.0**-10  # root mean square of a row whose square is what most normalisations add an epsilon to

AMPLIFIED, SPIKED, RAISED = "amplified and tiny part", "spiked part", "parts' results raised"

Change = Callable[[torch.Tensor], torch.Tensor]


def run_part(layer: nn.Module, call: ModuleCall, device: torch.device, change: Change) -> list[ModuleCall]:
    """Call the module of `layer` that made `call` again on `device`, with its arguments but the activation changed, and
    with what modules inside were given instead of theirs, or returned as stubs; returns what was recorded, one tree a
    call. Raises ReplayDivergedError where it calls a stub more often than before.
    """
    part = layer.get_submodule(call.name)
    args, kwargs = _with_changed_activation(call, change, device)
    instead = {inner.name: inner.instead for inner in call.walk() if inner.instead is not None}
    with record(part) as trees, ExitStack() as hooks, _stubs(layer, call, device) as stubs:
        for name, value in instead.items():  # behind the recorder's hooks, which see what the caller hands over
            hook = partial(_given_instead, value)
            hooks.callback(layer.get_submodule(name).register_forward_pre_hook(hook).remove)
        part(*args, **kwargs)
    renamed = [_renamed(tree, call.name) for tree in trees]
    for inner in (inner for tree in renamed for inner in tree.walk()):
        inner.instead = instead.get(inner.name)
        inner.stub = inner.name in stubs
    return renamed


def unchanged(x: torch.Tensor) -> torch.Tensor:
    """The input as it was."""
    return x


def excitations(layer: nn.Module, call: ModuleCall, dtype: torch.dtype) -> dict[str, Change]:
    """The inputs that reach further for the module of `layer` that made `call`, by name."""
    module = layer.get_submodule(call.name)
    tiny = tiny_rows(constants_of(module).values(), dtype)
    return {AMPLIFIED: partial(amplified_and_tiny, tiny=tiny, raised=raising(module, call)), SPIKED: spiked}


def tiny_rows(epsilons: Iterable[float], dtype: torch.dtype) -> float:
    """The root mean square of rows that show any of these constants where one is an epsilon: its square is no larger
    than the smallest, as far as `dtype` has such numbers.
    """
    smallest = min(epsilons, default=TINY**2)
    wanted = min(TINY, smallest**0.5)
    return wanted if wanted > 16 * torch.finfo(dtype).smallest_normal else TINY


def amplified_and_tiny(x: torch.Tensor, tiny: float = TINY, raised: Raise | None = None) -> torch.Tensor:
    """Of every four rows one amplified; one of root mean square `tiny` at most, so that a wrong epsilon shows; and two
    in which units are `raised`, or else amplified too.
    """
    wide = x.float()
    top = float(wide.abs().max())
    scale = AMPLIFICATION
    while abs(scale) * top > torch.finfo(x.dtype).max / 64 and abs(scale) > 1:
        scale /= 2
    rows = wide.reshape(-1, x.shape[-1])
    result = rows * scale
    result[1::4] = rows[1::4] * (tiny / rows[1::4].square().mean(-1, keepdim=True).sqrt().clamp_min(tiny))
    half = torch.arange(len(rows)) % 4 >= 2
    if raised is not None and half.any():
        result[half] = raised(rows[half], 2 * abs(scale), torch.finfo(x.dtype).max / 64)  # above what is amplified
    return result.reshape(x.shape).to(x.dtype)


def spiked(x: torch.Tensor) -> torch.Tensor:
    """Each row with one element far above the rest, another one in each row: after a normalisation, the largest
    value it can give.
    """
    top = min(2.0**6 * max(float(x.float().abs().max()), 1.0), torch.finfo(x.dtype).max / 64)
    rows = x.clone().reshape(-1, x.shape[-1])
    rows[torch.arange(rows.shape[0]), torch.arange(rows.shape[0]) % rows.shape[1]] = top
    return rows.reshape(x.shape)


def _with_changed_activation(
    call: ModuleCall, change: Change, device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call's arguments back on the device, the first floating-point tensor changed."""
    changed = False

    def restore(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal changed
        if tensor.is_floating_point() and tensor.dim() >= 2 and not changed:
            changed = True
            tensor = change(tensor)
        return tensor.to(device)

    kwargs = call.kwargs
    if "hidden_states" in kwargs:  # as modules name their input; other keyword tensors are masks and positions
        kwargs = {"hidden_states": kwargs["hidden_states"], **kwargs}
    if call.args:
        args = map_tensors(call.args, restore)
        return args, map_tensors(kwargs, restore)
    return (), map_tensors(kwargs, restore)


def _given_instead(value: torch.Tensor, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return value.to(args[0].device, args[0].dtype), *args[1:]  # which a detour may have changed


@contextmanager
def _stubs(layer: nn.Module, call: ModuleCall, device: torch.device) -> Iterator[set[str]]:
    """Let the modules that are stubs in `call` return, each time, what they are told to; their names."""
    outputs: dict[str, deque[Any]] = defaultdict(deque)
    for inner in call.walk():
        if inner.stub:
            outputs[inner.name].append(map_tensors(inner.output, lambda tensor: tensor.to(device, copy=True)))
    stubs = {layer.get_submodule(name): partial(_next_of, values, name) for name, values in outputs.items()}
    with forwards_replaced(stubs):
        yield set(outputs)


def _next_of(outputs: deque[Any], name: str, *_args: Any, **_kwargs: Any) -> Any:
    if not outputs:
        raise ReplayDivergedError(f"'{name}' was called more often than before")
    return outputs.popleft()


def _renamed(tree: ModuleCall, prefix: str) -> ModuleCall:
    """The tree with names below the layer instead of below the part that was recorded."""
    for call in tree.walk():
        call.name = dotted(prefix, call.name)
        for entry in call.operators:
            entry.module = call.name
    return tree
