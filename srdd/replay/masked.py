"""An attention on sequences of different lengths, as in a batch of texts: kernels that take no mask for whole rows then
take one, or others are called.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hal.calls import activation
from hal.host_attention import falls_back_on_eager
from srdd.replay.alike import mean_of
from srdd.replay.capture import ModuleCall

_MASK = "attention_mask"


def with_tokens_masked(layer: nn.Module, call: ModuleCall) -> ModuleCall | None:
    """The call of an attention to be made again for its own arithmetic alone: its parts are stubs that return what they
    returned, and the first quarter of each sequence but the first is masked. None where it is no attention, or nothing
    says what form its mask has.
    """
    module, stream = layer.get_submodule(call.name), activation(call.args, call.kwargs)
    if stream is None or stream.dim() != 3 or not (mean_of(call) or falls_back_on_eager(module)):
        return None
    arguments = {**inspect.signature(module.forward).bind_partial(*call.args).arguments, **call.kwargs}
    if _MASK not in arguments:
        return None
    sequences, tokens = stream.shape[:2]
    shorter = torch.arange(sequences) >= min(1, sequences - 1)
    padding = shorter[:, None] & (torch.arange(tokens) < tokens // 4)
    mask = arguments[_MASK]
    mask = _made(module, call, padding, stream.dtype) if mask is None else _extended(mask, _hidden(padding))
    if mask is None:
        return None
    stubs = [replace(child, stub=True, children=[]) for child in call.children]
    return replace(call, args=(), kwargs={**arguments, _MASK: mask}, children=stubs)


def _hidden(padding: torch.Tensor) -> torch.Tensor:
    """Which keys each query loses, [sequences, 1, queries, keys]: padding, but one that is itself padding, which would
    see none, keeps what it saw.
    """
    return (~padding[:, :, None] & padding[:, None, :])[:, None]


def _made(module: nn.Module, call: ModuleCall, padding: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask that the attention's kernel takes where it took none: flash attention the tokens that are there,
    [sequences, tokens], scaled dot product attention what each query sees, eager code what is added to its scores.
    """
    kernel, hidden = str(getattr(getattr(module, "config", None), "_attn_implementation", None)), _hidden(padding)
    if kernel.startswith("flash"):
        return (~padding).long()
    if kernel == "sdpa":
        causal = any(operator.kwargs.get("is_causal") for operator in call.operators)
        return (~hidden).tril() if causal else ~hidden
    if kernel == "eager" and falls_back_on_eager(module):
        return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    return None


def _extended(mask: Any, hidden: torch.Tensor) -> torch.Tensor | None:
    """A mask of queries and keys, true or false or numbers that are added, without the hidden keys."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4 or mask.shape[-2:] != hidden.shape[-2:]:
        return None
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
