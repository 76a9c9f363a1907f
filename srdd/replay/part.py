"""Run one part of a layer alone on the device, on a changed input, and record it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from hal.structure import dotted
from srdd.replay.capture import ModuleCall, map_tensors, record
from srdd.replay.constants import constants_of

AMPLIFICATION = -(2.0**6)  # of a submodule's input: larger than its data, and of the other sign
TINY = 2.0**-10  # root mean square of a row whose square is what most normalisations add an epsilon to

AMPLIFIED, SPIKED = "amplified and tiny part", "spiked part"

Change = Callable[[torch.Tensor], torch.Tensor]


def run_part(layer: nn.Module, call: ModuleCall, device: torch.device, change: Change) -> list[ModuleCall]:
    """Call the module of `layer` that made `call` again on `device`, with its arguments but the activation changed;
    returns what was recorded, one tree a call.
    """
    part = layer.get_submodule(call.name)
    args, kwargs = _with_changed_activation(call, change, device)
    with record(part) as trees:
        part(*args, **kwargs)
    return [_renamed(tree, call.name) for tree in trees]


def unchanged(x: torch.Tensor) -> torch.Tensor:
    """The input as it was."""
    return x


def excitations(layer: nn.Module, call: ModuleCall, dtype: torch.dtype) -> dict[str, Change]:
    """The inputs that reach further for the module of `layer` that made `call`, by name."""
    tiny = tiny_rows(constants_of(layer.get_submodule(call.name)).values(), dtype)
    return {AMPLIFIED: partial(amplified_and_tiny, tiny=tiny), SPIKED: spiked}


def tiny_rows(epsilons: Iterable[float], dtype: torch.dtype) -> float:
    """The root mean square of rows that show any of these constants where one is an epsilon: its square is no larger
    than the smallest, as far as `dtype` has such numbers.
    """
    smallest = min(epsilons, default=TINY**2)
    wanted = min(TINY, smallest**0.5)
    return wanted if wanted > 16 * torch.finfo(dtype).smallest_normal else TINY


def amplified_and_tiny(x: torch.Tensor, tiny: float = TINY) -> torch.Tensor:
    """Three rows of four amplified, each fourth of root mean square `tiny` at most, so that a wrong epsilon shows."""
    wide = x.float()
    top = float(wide.abs().max())
    scale = AMPLIFICATION
    while abs(scale) * top > torch.finfo(x.dtype).max / 64 and abs(scale) > 1:
        scale /= 2
    result = (wide * scale).reshape(-1, x.shape[-1])
    rows = wide.reshape(-1, x.shape[-1])[1::4]
    result[1::4] = rows * (tiny / rows.square().mean(-1, keepdim=True).sqrt().clamp_min(tiny))
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


def _renamed(tree: ModuleCall, prefix: str) -> ModuleCall:
    """The tree with names below the layer instead of below the part that was recorded."""
    for call in tree.walk():
        call.name = dotted(prefix, call.name)
        for entry in call.operators:
            entry.module = call.name
    return tree
