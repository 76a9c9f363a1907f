"""Attention's masks, grouped heads and conventions, and rotary embedding."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

import hal
from hal import noise
from hal.ops.attention import attention, rope


def draw(*shape, stream):
    return noise.normal(shape, seed=21, stream=stream)


def heads(queries=6, keys=6, query_heads=4, groups=4):
    return (
        draw(2, query_heads, queries, 8, stream=0),
        draw(2, groups, keys, 8, stream=1),
        draw(2, groups, keys, 8, stream=2),
    )


def test_plain_and_causal_forms_are_torchs():
    q, k, v = heads()
    assert torch.allclose(attention(q, k, v), functional.scaled_dot_product_attention(q, k, v), atol=1e-6)
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(attention(q, k, v, causal=True), expected, atol=1e-6)


def test_mask_is_torchs():
    q, k, v = heads(keys=9)
    mask = noise.uniform((2, 1, 6, 9), seed=1) > 0.3
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(attention(q, k, v, mask), expected, atol=1e-6)


def test_grouped_heads_share_neighbouring_queries():
    q, k, v = heads(query_heads=6, groups=3)
    expected = attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    assert torch.allclose(attention(q, k, v), expected, atol=1e-6)


def test_last_query_sees_every_key_when_causal():
    q, k, v = heads(queries=3, keys=7)
    whole_q = torch.cat((draw(2, 4, 4, 8, stream=9), q), 2)
    assert torch.allclose(attention(q, k, v, causal=True), attention(whole_q, k, v, causal=True)[:, :, 4:], atol=1e-6)


def test_mask_and_causality_both_hold():
    q, k, v = heads()
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 0] = False
    both = attention(q, k, v, mask, causal=True)
    assert torch.allclose(both[:, :, 1], v[:, :, 1], atol=1e-6)
    assert torch.equal(both[:, :, 0], torch.zeros_like(both[:, :, 0]))


def test_query_that_may_attend_to_nothing_gives_zeros_and_no_gradient():
    q, k, v = (part.requires_grad_() for part in heads())
    mask = torch.zeros(6, 6, dtype=torch.bool)
    out = attention(q, k, v, mask)
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(out))
    for part in (q, k, v):
        assert torch.equal(part.grad, torch.zeros_like(part))


def test_more_queries_than_keys_leave_the_first_ones_empty_when_causal():
    q, k, v = heads(queries=5, keys=3)
    out = attention(q, k, v, causal=True)
    assert torch.equal(out[:, :, :2], torch.zeros_like(out[:, :, :2]))
    assert torch.allclose(out[:, :, 2], v[:, :, 0], atol=1e-6)


def test_scale_replaces_the_default():
    q, k, v = heads()
    assert torch.allclose(attention(q, k, v, scale=8**-0.5), attention(q, k, v))
    assert torch.allclose(attention(q, k, v, scale=0.0), v.mean(2, keepdim=True).expand_as(v), atol=1e-6)


def test_width_of_the_values_may_differ():
    q, k, v = heads()
    assert torch.allclose(attention(q, k, v[..., :3]), attention(q, k, v)[..., :3], atol=1e-6)


def test_heads_that_do_not_divide_and_float_masks_are_refused():
    q, k, v = heads(query_heads=5, groups=4)
    with pytest.raises(hal.UsageError, match="attention with 5 query and 4 key-value heads"):
        attention(q, k, v)
    q, k, v = heads()
    with pytest.raises(hal.UsageError, match=r"attention mask of dtype torch\.float32: give booleans"):
        attention(q, k, v, torch.zeros(6, 6))


def test_rope_turns_each_pair_by_its_angle():
    angle = torch.tensor([[0.3, 1.1]])
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    turned = rope(x, angle.cos().repeat(1, 2), angle.sin().repeat(1, 2))[0]
    for pair in range(2):
        first, second, turn = x[0, pair], x[0, pair + 2], float(angle[0, pair])
        assert float(turned[pair]) == pytest.approx(float(first) * math.cos(turn) - float(second) * math.sin(turn))
        assert float(turned[pair + 2]) == pytest.approx(float(second) * math.cos(turn) + float(first) * math.sin(turn))


def test_rope_keeps_lengths_and_undoes_itself():
    x = draw(2, 3, 5, 8, stream=5)
    angle = noise.uniform((5, 4), seed=2).repeat(1, 2) * 6
    turned = rope(x, angle.cos(), angle.sin())
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(rope(turned, angle.cos(), -angle.sin()), x, atol=1e-5)


def test_rope_over_an_odd_width_is_refused():
    with pytest.raises(hal.UsageError, match="rope over 5 features: the last dimension must be even"):
        rope(torch.ones(2, 5), torch.ones(2, 5), torch.ones(2, 5))
