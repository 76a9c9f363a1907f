"""Host form of FlashAttentionScore, the kernel behind scaled_dot_product_attention on the device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from simulator.kernels_in_python import kernel

# What each layout of (batch, sequence, heads, head size) needs to become batch, heads, sequence, head size.
_HEADS_FOLDED = {"BSH": (0, 2, 1, 3), "SBH": (1, 2, 0, 3)}
_TOKENS = "TND"  # sequences of any lengths one behind the other
_LEFT_UPPER_CAUSAL, _RIGHT_DOWN_CAUSAL = 2, 3
# The kernel repeats each row's softmax statistics to fill a 32-byte block.
_STATISTICS_WIDTH = 8


def _split_heads(x: torch.Tensor, layout: str, heads: int) -> torch.Tensor:
    if layout == "BNSD":
        return x
    if layout == "BSND":
        return x.transpose(1, 2)
    if layout == _TOKENS:
        return x.transpose(0, 1)[None]
    if layout in _HEADS_FOLDED:
        return x.unflatten(-1, (heads, -1)).permute(_HEADS_FOLDED[layout])
    raise NotImplementedError(f"simulated npu: attention layout {layout}")


def _join_heads(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "BNSD":
        return x.contiguous()
    if layout == "BSND":
        return x.transpose(1, 2).contiguous()
    if layout == _TOKENS:
        return x[0].transpose(0, 1).contiguous()
    back = (0, 2, 1, 3) if layout == "BSH" else (2, 0, 1, 3)
    return x.permute(back).flatten(2).contiguous()


def _excluded(call: Any, queries: int, keys: int) -> torch.Tensor | None:
    """True where a query must not see a key."""
    if call.input_layout == _TOKENS:
        return _excluded_between_sequences(call, queries, keys)
    if call.sparse_mode in (_LEFT_UPPER_CAUSAL, _RIGHT_DOWN_CAUSAL):
        offset = 0 if call.sparse_mode == _LEFT_UPPER_CAUSAL else keys - queries
        return torch.ones(queries, keys, dtype=torch.bool).triu(1 + offset)
    if call.atten_mask is None:
        return None
    return torch.as_tensor(call.atten_mask.bool()[..., :queries, :keys])


def _excluded_between_sequences(call: Any, queries: int, keys: int) -> torch.Tensor:
    """What sequences must not see of others, by where each of them ends, and, where a mask is given, of themselves."""
    if call.atten_mask is not None and call.sparse_mode not in (_LEFT_UPPER_CAUSAL, _RIGHT_DOWN_CAUSAL):
        raise NotImplementedError(f"simulated npu: attention of {_TOKENS} under sparse mode {call.sparse_mode}")
    excluded = torch.ones(queries, keys, dtype=torch.bool)
    row = column = 0
    for row_end, column_end in zip(call.actual_seq_qlen, call.actual_seq_kvlen, strict=True):
        block = excluded[row:row_end, column:column_end]
        block.zero_()
        if call.atten_mask is not None:
            offset = 0 if call.sparse_mode == _LEFT_UPPER_CAUSAL else block.shape[1] - block.shape[0]
            block.copy_(torch.ones_like(block).triu(1 + offset))
        row, column = row_end, column_end
    return excluded


def _attend(call: Any, scale: float, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if call.keep_prob != 1.0:
        raise NotImplementedError(f"simulated npu: attention dropout (keep_prob={call.keep_prob})")
    query, key, value = inputs
    folded = call.input_layout in _HEADS_FOLDED
    head_size = query.shape[-1] // call.head_num
    key_heads = key.shape[-1] // head_size if folded else call.head_num
    q = _split_heads(query, call.input_layout, call.head_num)
    k, v = (_split_heads(x, call.input_layout, key_heads) for x in (key, value))
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    # The matrix unit takes narrow inputs and accumulates in float32.
    scores = (q.float() @ k.float().transpose(-1, -2)) * scale
    excluded = _excluded(call, q.shape[2], k.shape[2])
    if excluded is not None:
        # The kernel selects the smallest float32, not infinity: a query that sees no key (padding) is no NaN.
        scores = scores.masked_fill(excluded, torch.finfo(torch.float32).min)
    largest = scores.amax(-1, keepdim=True)
    exponentials = (scores - largest).exp()
    total = exponentials.sum(-1, keepdim=True)
    weights = (exponentials / total).to(query.dtype)
    output = (weights.float() @ v.float()).to(query.dtype)
    statistics = (_statistics(column, call.input_layout) for column in (largest, total))
    return _join_heads(output, call.input_layout), *statistics


def _statistics(column: torch.Tensor, layout: str) -> torch.Tensor:
    repeated = column.expand(*column.shape[:-1], _STATISTICS_WIDTH).contiguous()
    return _join_heads(repeated, layout) if layout == _TOKENS else repeated


def _forward(call: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    output, largest, total = _attend(call, call.scale, call.query, call.key, call.value)
    return output, largest, total, torch.empty(0)


def _backward(call: Any) -> tuple[torch.Tensor, ...]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (call.query, call.key, call.value)]
        output, _, _ = _attend(call, call.scale_value, *leaves)
        grads = torch.autograd.grad(output, leaves, call.dy)
    # The last two are the gradients of the position bias and of the sink, which are not simulated.
    return *(grad.contiguous() for grad in grads), torch.empty(0), torch.empty(0)


@kernel("npu::npu_fusion_attention")
def fusion_attention(call: SimpleNamespace) -> tuple[Any, ...]:
    return *_forward(call), 0, 0, 0


@kernel("npu::npu_fusion_attention_v3")
def fusion_attention_v3(call: SimpleNamespace) -> tuple[Any, ...]:
    return *_forward(call), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)


@kernel("npu::npu_fusion_attention_grad")
def fusion_attention_grad(call: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    return _backward(call)


@kernel("npu::npu_fusion_attention_grad_v3")
def fusion_attention_grad_v3(call: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    return _backward(call)
