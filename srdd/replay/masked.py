"""An attention on sequences of different lengths, as in a batch of texts: kernels that need no mask for whole rows then
take one.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hal.calls import activation
from srdd.replay.alike import mean_of
from srdd.replay.capture import ModuleCall

_MASK = "attention_mask"


def with_tokens_masked(layer: nn.Module, call: ModuleCall) -> ModuleCall | None:
    """The call of an attention to be made again for its own arithmetic alone: its parts are stubs that return what they
    returned, and the first quarter of each sequence but the first is masked for the tokens behind it. None where it is
    no attention, or takes no mask of the form [sequences, heads, queries, keys].
    """
    stream = activation(call.args, call.kwargs)
    if mean_of(call) is None or stream is None or stream.dim() != 3:
        return None
    module = layer.get_submodule(call.name)
    named = inspect.signature(module.forward).bind_partial(*call.args).arguments
    kwargs = {**named, **call.kwargs}
    if _MASK not in kwargs:
        return None
    mask = _masked(kwargs[_MASK], _padding(*stream.shape[:2]), call, module)
    if mask is None:
        return None
    stubs = [replace(child, stub=True, children=[]) for child in call.children]
    return replace(call, args=(), kwargs={**kwargs, _MASK: mask}, children=stubs)


def _padding(sequences: int, tokens: int) -> torch.Tensor:
    """Which keys are masked, [sequences, 1, queries, keys]; a query that is itself padding sees what it saw."""
    first, places = tokens // 4, torch.arange(tokens)
    hidden = (places[:, None] >= first) & (places < first)
    shorter = torch.arange(sequences) >= min(1, sequences - 1)
    return hidden & shorter[:, None, None, None]


def _masked(mask: Any, hidden: torch.Tensor, call: ModuleCall, module: nn.Module) -> torch.Tensor | None:
    """The mask with these keys masked too; None for one of another form, or where none says what form it would have."""
    if mask is None:
        implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
        causal = any(operator.kwargs.get("is_causal") for operator in call.operators)
        return None if implementation != "sdpa" else (~hidden).tril() if causal else ~hidden
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4 or mask.shape[-2:] != hidden.shape[-2:]:
        return None
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
