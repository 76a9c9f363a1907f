"""What an engine's layer did, said as the same layer of transformers would have done it.

Engines fuse: one module for three projections, one for a residual addition and its normalisation, one kernel from
rotary embedding to attention. The recorded tree of calls is rewritten into that of the reference layer, so that the
same replay judges both; what the reference has no module for is judged as its parent's own arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn

from hal.engines.fused import PARTS
from hal.structure import dotted
from srdd.replay.capture import ModuleCall, tensors_in


@dataclass(frozen=True)
class Reference:
    """The layer of transformers that stands for the engine's: `layer`, with `rotary`, the positions' cosine and sine
    [1, tokens, units] in the engine's dtype. `whole`: this process computes the whole layer, not a shard of it.
    """

    layer: nn.Module
    rotary: tuple[torch.Tensor, torch.Tensor]
    whole: bool

    def module(self, name: str) -> nn.Module | None:
        """The module called `name` below the layer, None when there is none."""
        found: Any = self.layer
        for part in name.split(".") if name else ():
            found = getattr(found, part, None)
        return found if isinstance(found, nn.Module) else None

    def is_attention(self, name: str) -> bool:
        """Whether `name` is a part of the layer that is given positions, as its attention alone is."""
        module = self.module(name)
        return bool(name) and module is not None and "position_embeddings" in signature(module.forward).parameters


def translate(call: ModuleCall, reference: Reference) -> list[ModuleCall]:
    """`call` and all below it as calls of the reference's modules; empty when it has none for them."""
    parent, _, leaf = call.name.rpartition(".")
    if leaf in PARTS:
        return _split(call, parent, reference) if reference.whole else []
    module = reference.module(call.name)
    if module is None or (not reference.whole and "." in call.name) or leaf.startswith("act"):
        return []
    children = [part for child in call.children for part in translate(child, reference)]
    if not call.name:
        return [_layer(call, reference, children)]
    taken, given = _activation(call), _first(call.output)
    if len(tensors_in(call.args)) > 1 and isinstance(call.output, (tuple, list)) and not call.children:
        taken = _as_batch(call.output[1])  # the sum that the fused addition made and normalised
    if reference.is_attention(call.name):
        options = {"hidden_states": taken, "position_embeddings": reference.rotary, "attention_mask": None}
        return [ModuleCall(call.name, (), options, (given, None), children)]  # and the weights, which it keeps
    return [ModuleCall(call.name, (taken,), {}, given, children)]


def _layer(call: ModuleCall, reference: Reference, children: list[ModuleCall]) -> ModuleCall:
    floating = tensors_in((call.args, call.kwargs))
    stream = floating[0] if len(floating) == 1 else floating[0] + floating[1]
    returned = tensors_in(call.output)
    output = returned[0] if len(returned) == 1 else returned[0] + returned[1]
    options: dict[str, Any] = {"position_embeddings": reference.rotary, "attention_mask": None}
    return ModuleCall("", (_as_batch(stream),), options, _as_batch(output), children)


def _split(call: ModuleCall, parent: str, reference: Reference) -> list[ModuleCall]:
    taken, given = _activation(call), _first(call.output)
    found, start = [], 0
    for part in PARTS[call.name.rpartition(".")[2]]:
        name = dotted(parent, part)
        module: Any = reference.module(name)
        if module is None:
            return []
        stop = start + int(module.out_features)
        found.append(ModuleCall(name, (taken,), {}, given[..., start:stop].contiguous()))
        start = stop
    return found


def _activation(call: ModuleCall) -> torch.Tensor:
    named = call.kwargs.get("hidden_states")
    return _as_batch(named if isinstance(named, torch.Tensor) else tensors_in((call.args, call.kwargs))[0])


def _first(output: Any) -> torch.Tensor:
    return _as_batch(tensors_in(output)[0])


def _as_batch(flat: torch.Tensor) -> torch.Tensor:
    """Engines lay all tokens in a row; the reference has a batch of one sequence."""
    return flat[None]
