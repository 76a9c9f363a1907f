"""Attention on the host in place of a kernel: one that has no host form, or that is not transformers' own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hal.shipped_code import same_code, shipped_module

HOST_ATTENTION = "hal_host"
_SDPA = "transformers.integrations.sdpa_attention"


def host_implementation(owner: Any, implementation: str | None) -> str | None:
    """The attention that stands on the host for `implementation`, by which the transformers model `owner` runs: itself
    where it is transformers' own and runs there, else `HOST_ATTENTION`, which this registers, or eager in a class that
    chooses among classes of its own.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    registered = ALL_ATTENTION_FUNCTIONS.get(implementation)
    if registered is None and implementation in (None, "eager"):
        return implementation
    if implementation == "sdpa" and same_code(registered, shipped_module(_SDPA).sdpa_attention_forward):
        return implementation
    if not owner._can_set_attn_implementation():
        return "eager"
    _register()
    return HOST_ATTENTION


def host_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Any]:
    """The attention that `module`'s own file calls eager, of `query`, [batch, heads, rows, size], and `key` and
    `value`, [batch, key heads, columns, size]. A kernel may have been told by flags what eager is told by a mask: where
    `attention_mask` is none of [batch, heads, rows, columns], the mask is made from `is_causal`, `sliding_window` and
    the tokens that a mask of [batch, columns] leaves; for a row that is none of those, flash attention returns zeros.
    """
    eager = _eager_of(module)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    tokens = None
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4:
        visible = attention_mask
    else:
        visible = _visible(query, key, causal, sliding_window)
        if isinstance(attention_mask, torch.Tensor):
            tokens = attention_mask[:, -key.shape[-2] :].bool()
            visible = visible & tokens[:, None, None]
    mask = _added(visible, query.dtype) if visible.dtype == torch.bool else visible
    output, weights = eager(module, query, key, value, mask, is_causal=causal, sliding_window=sliding_window, **options)
    if tokens is not None:
        output = output.masked_fill(~tokens[:, -query.shape[-2] :, None, None], 0.0)
    return output, weights


def falls_back_on_eager(module: nn.Module) -> bool:
    """Whether the module is an attention that is computed by a kernel of the user's choice, or else by eager code."""
    return bool(_eager_names(module))


def _eager_of(module: nn.Module) -> Callable[..., tuple[torch.Tensor, Any]]:
    """The function that `module` falls back on for eager attention; files name it with this ending."""
    names = _eager_names(module)
    if not names:
        raise LookupError(f"{type(module).__name__} has no eager attention of its own")
    eager: Callable[..., tuple[torch.Tensor, Any]] = inspect.unwrap(type(module).forward).__globals__[names[0]]
    return eager


def _eager_names(module: nn.Module) -> list[str]:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return [name for name in getattr(code, "co_names", ()) if name.endswith("eager_attention_forward")]


def _visible(query: torch.Tensor, key: torch.Tensor, causal: bool, window: int | None) -> torch.Tensor:
    """Which columns each row may look at, [1, 1, rows, columns]; the last row belongs to the last column."""
    rows, columns = query.shape[-2], key.shape[-2]
    keys = torch.arange(columns, device=query.device)
    distance = keys[columns - rows :, None] - keys
    visible = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        visible &= distance.abs() < window
    return visible[None, None]


def _added(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # The lowest number, not minus infinity, of which softmax makes NaN in a row that sees nothing.
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(HOST_ATTENTION, host_attention)
    AttentionMaskInterface.register(HOST_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
