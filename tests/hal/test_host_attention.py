"""What stands on the host for an attention kernel computes what the kernel was asked for, by mask or by flag."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import GPTJConfig, GPTJForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from hal.host_attention import HOST_ATTENTION, falls_back_on_eager, host_attention, host_implementation
from hal.structure import find_layer_stack

BATCH, HEADS, KEY_HEADS, SIZE = 2, 4, 2, 16


@pytest.fixture
def attention(make_model):
    return find_layer_stack(make_model("qwen2", layers=1)).layers[0].self_attn


def inputs(rows, columns):
    generator = torch.Generator().manual_seed(3)
    shapes = [(BATCH, HEADS, rows, SIZE), (BATCH, KEY_HEADS, columns, SIZE), (BATCH, KEY_HEADS, columns, SIZE)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def expected(query, key, value, visible):
    key, value = (tensor.repeat_interleave(HEADS // KEY_HEADS, 1) for tensor in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=visible).transpose(1, 2)


def distance(rows, columns):
    return torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)


@pytest.mark.parametrize(("rows", "columns"), [(9, 9), (1, 9), (4, 9)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_flags_become_a_mask(attention, rows, columns, causal, window):
    query, key, value = inputs(rows, columns)
    back = distance(rows, columns)
    visible = back >= 0 if causal else back == back
    if window is not None:
        visible = visible & (back.abs() < window)
    output, _ = host_attention(
        attention, query, key, value, None, is_causal=causal, sliding_window=window, scaling=SIZE**-0.5
    )
    # Eager takes the softmax in float32.
    torch.testing.assert_close(output, expected(query, key, value, visible), rtol=1e-5, atol=1e-5)


def test_columns_that_a_mask_of_tokens_leaves_out_are_left_out(attention):
    query, key, value = inputs(9, 9)
    tokens = torch.ones(BATCH, 9, dtype=torch.int64)
    tokens[1, :4] = 0
    visible = (distance(9, 9) >= 0) & tokens[:, None, None].bool()
    output, _ = host_attention(attention, query, key, value, tokens, is_causal=True, scaling=SIZE**-0.5)
    wanted = expected(query, key, value, visible)
    torch.testing.assert_close(output[0], wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output[1, 4:], wanted[1, 4:], rtol=1e-5, atol=1e-5)
    assert not output[1, :4].any()  # as flash attention leaves them


@pytest.mark.parametrize("added", [True, False], ids=["numbers", "true or false"])
def test_a_mask_of_rows_and_columns_is_all_that_counts(attention, added):
    query, key, value = inputs(5, 5)
    visible = torch.rand(BATCH, 1, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    visible |= torch.eye(5, dtype=torch.bool)
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -1e30) if added else visible
    output, _ = host_attention(attention, query, key, value, mask, is_causal=True, sliding_window=2, scaling=SIZE**-0.5)
    torch.testing.assert_close(output, expected(query, key, value, visible), rtol=1e-5, atol=1e-5)


def test_an_attention_whose_kernel_can_be_chosen_falls_back_on_eager_code(attention, make_model):
    assert falls_back_on_eager(attention)
    assert not falls_back_on_eager(attention.q_proj)
    assert not falls_back_on_eager(find_layer_stack(make_model("qwen2", layers=1)).layers[0])


def test_transformers_own_attention_stands_for_itself(make_model):
    model = make_model("qwen2", layers=1)
    assert host_implementation(model, "sdpa") == "sdpa"
    assert host_implementation(model, "eager") == "eager"


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flex_attention", "somebody_s_own"])
def test_a_kernel_is_stood_in_for(make_model, kernel):
    assert host_implementation(make_model("qwen2", layers=1), kernel) == HOST_ATTENTION
    assert ALL_ATTENTION_FUNCTIONS[HOST_ATTENTION] is host_attention


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_a_kernel_under_the_name_of_transformers_own_is_stood_in_for(make_model, monkeypatch, name):
    def fused(*args, **kwargs):
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, name, fused)
    assert host_implementation(make_model("qwen2", layers=1), name) == HOST_ATTENTION


def test_a_model_that_chooses_among_classes_of_its_own_is_given_its_eager_one():
    config = GPTJConfig(vocab_size=40, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=32)
    assert host_implementation(GPTJForCausalLM(config), "flash_attention_2") == "eager"
