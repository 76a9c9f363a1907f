"""Attention with causal or boolean masks and grouped key-value heads, and rotary position embedding."""

from __future__ import annotations

import math

import torch

from hal.errors import UsageError
from hal.ops.catalogue import Arguments, Op, register
from hal.ops.precision import host64
from hal.ops.sampling import SampleSpec


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """`softmax(q @ k.T * scale) @ v` per head, for q [B, H, S, D], k and v [B, G, T, D] where H is a multiple of G and
    head h reads key-value head h // (H / G). `mask` is boolean, True where a query may attend, and broadcasts to [B,
    H, S, T]; `causal` lets query i attend to keys up to i + T - S, so that the last query sees all; `scale` defaults
    to D**-0.5. A query that may attend to nothing gives zeros. float32 inside, one rounding to q's dtype; heads that
    do not divide, or a mask of another dtype, are a UsageError.
    """
    _check(q, k, mask)
    batch, heads, queries, width = q.shape
    groups, keys = k.shape[1], k.shape[2]
    grouped = q.float().view(batch, groups, heads // groups, queries, width)
    scores = grouped @ k.float()[:, :, None].transpose(-1, -2) * _scale(q, scale)
    allowed = _allowed(queries, keys, mask, causal, q.device)
    if allowed is not None:
        scores = scores.view(batch, heads, queries, keys).masked_fill(~allowed, -math.inf)
        scores = scores.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    share = torch.softmax(scores, -1)
    if allowed is not None:
        share = share.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    mixed = share.view(batch, groups, -1, queries, keys) @ v.float()[:, :, None]
    return mixed.reshape(batch, heads, queries, v.shape[-1]).to(q.dtype)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding in the half-split form (Su et al., 2021): `x * cos + rotate(x) * sin` with rotate(x) =
    (-second half, first half) of the last dimension; x [..., S, D], cos and sin [S, D] or broadcastable, D even.
    float32 inside, one rounding to x's dtype.
    """
    if x.shape[-1] % 2:
        raise UsageError(f"rope over {x.shape[-1]} features: the last dimension must be even")
    wide = x.float()
    first, second = wide.chunk(2, -1)
    rotated = torch.cat((-second, first), -1)
    return (wide * cos.float() + rotated * sin.float()).to(x.dtype)


def _check(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> None:
    if q.shape[1] % k.shape[1]:
        raise UsageError(
            f"attention with {q.shape[1]} query and {k.shape[1]} key-value heads: the first must be a multiple "
            "of the second"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise UsageError(f"attention mask of dtype {mask.dtype}: give booleans, True where a query may attend")


def _scale(q: torch.Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _allowed(
    queries: int, keys: int, mask: torch.Tensor | None, causal: bool, device: torch.device
) -> torch.Tensor | None:
    if not causal:
        return mask
    last = torch.arange(queries, device=device)[:, None] + (keys - queries)
    past = torch.arange(keys, device=device) <= last
    return past if mask is None else past & mask


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    repeats = q.shape[1] // k.shape[1]
    keys, values = (host64(part).repeat_interleave(repeats, 1) for part in (k, v))
    scores = torch.einsum("bhsd,bhtd->bhst", host64(q), keys) * _scale(q, scale)
    queries, length = scores.shape[-2:]
    barred = torch.zeros(queries, length, dtype=torch.bool)
    if causal:
        barred = torch.ones(queries, length, dtype=torch.bool).triu(length - queries + 1)
    barred = (barred if mask is None else barred | ~mask.cpu()).expand_as(scores)
    scores = torch.where(barred, -math.inf, scores)
    share = torch.exp(scores - scores.detach().amax(-1, keepdim=True))
    share = share / share.sum(-1, keepdim=True)
    empty = barred.all(-1, keepdim=True)
    return torch.einsum("bhst,bhtd->bhsd", torch.where(empty, 0.0, share), values)


def _error_scale(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Terms of the mean of values, times the sensitivity of its weights: twice the terms of a score."""
    keys = host64(k).abs().repeat_interleave(q.shape[1] // k.shape[1], 1)
    sizes = torch.einsum("bhsd,bhtd->bhst", host64(q).abs(), keys).amax(-1, keepdim=True)
    sensitivity = 1 + 2 * sizes * abs(_scale(q, scale))
    return _reference(q, k, host64(v).abs(), mask, causal, scale) * sensitivity


def _rope_reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    wide, half = host64(x), x.shape[-1] // 2
    sign = torch.tensor([-1.0] * half + [1.0] * half, dtype=torch.float64)
    return wide * host64(cos) + wide.roll(half, -1) * sign * host64(sin)


def _rope_scale(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    wide, half = host64(x).abs(), x.shape[-1] // 2
    return wide * host64(cos).abs() + wide.roll(half, -1) * host64(sin).abs()


def _sample_attention(spec: SampleSpec) -> Arguments:
    batch, heads, groups, queries, keys, width = spec.pick(
        tiny=(1, 2, 1, 2, 2, 4), odd=(2, 6, 3, 5, 7, 10), large=(2, 8, 2, 48, 64, 64)
    )
    # Large and non-finite values go where they can be judged: large ones into the values, which enter
    # linearly, non-finite ones into the queries, each of which spoils its own row and no other.
    large, spoilt = spec.values == "large", spec.values == "nonfinite"
    draw_q = spec.weights if large else spec.data
    draw_k = spec.weights if large or spoilt else spec.data
    draw_v = spec.weights if spoilt else spec.data
    q, k, v = (
        draw_q("q", batch, heads, queries, width),
        draw_k("k", batch, groups, keys, width),
        draw_v("v", batch, groups, keys, width),
    )
    mask = spec.mask("mask", batch, 1, queries, keys) if spec.size == "odd" else None
    return q, k, v, mask, spec.size != "tiny"


def _sample_rope(spec: SampleSpec) -> Arguments:
    length, width = spec.pick(tiny=(2, 4), odd=(5, 10), large=(64, 64))
    x = spec.data("x", 2, 3, length, width, headroom=2)
    # Angles from integers, so that the tables need no function of the host's library to agree to the bit.
    eighth = spec.ids("angle", length, width // 2, high=8).repeat(1, 2)
    half = math.sqrt(0.5)
    table = torch.tensor([1.0, half, 0.0, -half, -1.0, -half, 0.0, half])
    return x, table[eighth].to(spec.dtype), table[(eighth + 6) % 8].to(spec.dtype)


ATTENTION = register(
    Op(
        "attention",
        "attention(q[B, H, S, D], k[B, G, T, D], v[B, G, T, D], mask[B|1, H|1, S, T] bool | None = None, "
        "causal = False, scale: float | None = None) -> [B, H, S, D]",
        attention,
        _reference,
        _sample_attention,
        error_scale=_error_scale,
    )
)
ROPE = register(
    Op(
        "rope",
        "rope(x[..., S, D], cos[S, D], sin[S, D]) -> [..., S, D]",
        rope,
        _rope_reference,
        _sample_rope,
        error_scale=_rope_scale,
    )
)
