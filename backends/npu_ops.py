"""Operators of the catalogue that torch_npu has as one fused kernel.

Each falls back to the catalogue's default, still on the device, where the kernel's documented limits
are not met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hal.ops import CATALOGUE

# npu_rotary_mul's limits on the batch, the heads and the head size.
ROTARY_MAX_OUTER = 1000
ROTARY_MAX_WIDTH = 896


def fused_operators() -> Mapping[str, Callable[..., Any]]:
    """The fused form of each operator, by its name in the catalogue."""
    return {"rms_norm": rms_norm, "swiglu": swiglu, "rope": rope}


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The catalogue's rms_norm by npu_rms_norm, which takes a weight of the input's dtype."""
    if x.dim() < 2 or weight.dtype != x.dtype:
        return _default("rms_norm", x, weight, eps)
    return torch.as_tensor(_npu().npu_rms_norm(x, weight, epsilon=eps)[0])


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The catalogue's swiglu by npu_swiglu, which takes both halves in one tensor."""
    if gate.dtype != up.dtype or gate.shape != up.shape or gate.dim() == 0:
        return _default("swiglu", gate, up)
    return torch.as_tensor(_npu().npu_swiglu(torch.cat((gate, up), -1), dim=-1))


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The catalogue's rope by npu_rotary_mul, which takes batch, heads, sequence, width with one table for all."""
    fits = x.dim() == 4 and cos.shape == sin.shape == x.shape[-2:] and x.dtype == cos.dtype == sin.dtype
    if not fits or max(x.shape[:2]) >= ROTARY_MAX_OUTER or x.shape[-1] >= ROTARY_MAX_WIDTH or x.shape[-1] % 2:
        return _default("rope", x, cos, sin)
    return torch.as_tensor(_npu().npu_rotary_mul(x, cos[None, None], sin[None, None], "half"))


def _npu() -> Any:
    import torch_npu

    return torch_npu


def _default(name: str, *arguments: Any) -> torch.Tensor:
    return torch.as_tensor(CATALOGUE[name].default(*arguments))
