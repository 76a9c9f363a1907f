"""A pass shows keys, values, hidden states and attention of what people distil, or says why it cannot."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from distill.forward_pass import run_pass
from distill.key_values import KeyValues
from hal.errors import UsageError
from tests.conftest import CARRYING, random_model


@pytest.mark.parametrize("family", CARRYING)
def test_every_layer_shows_what_it_computed(family, batch):
    model = random_model(family, layers=3, hidden=64)
    with torch.no_grad():
        made = run_pass(model, batch, attention=True)
    assert len(made.hidden) == len(made.key_values) == len(made.attention) == 3
    assert made.hidden[-1].shape == (2, 12, 64)
    assert made.key_values[0].keys.shape[2] == 12
    rows = made.attention[0].sum(-1)
    assert torch.allclose(rows, torch.ones_like(rows), atol=1e-4)
    assert torch.equal(made.counted, batch["attention_mask"].bool())


def test_keys_are_what_the_projection_gave_and_carry_gradients(batch):
    model = random_model("gpt2", layers=2)
    made = run_pass(model, batch)
    keys, values = made.key_values[0].tokens
    states = model.transformer.h[0].ln_1(
        model.transformer.drop(model.transformer.wte(batch["input_ids"]) + model.transformer.wpe(torch.arange(12)))
    )
    _, wanted, other = model.transformer.h[0].attn.c_attn(states).split(64, dim=2)
    assert torch.allclose(keys, wanted, atol=1e-5)
    assert torch.allclose(values, other, atol=1e-5)
    keys.sum().backward()
    assert model.transformer.h[0].attn.c_attn.weight.grad.any()


def test_attention_is_there_only_when_asked_for(batch):
    with torch.no_grad():
        made = run_pass(random_model("qwen2", layers=2), batch)
    with pytest.raises(UsageError, match="run it with attention=True"):
        made.attention_of(0)


def test_a_model_without_keys_of_all_tokens_is_refused(batch):
    config = tf.MistralConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, sliding_window=4,
    )  # fmt: skip
    with torch.no_grad(), pytest.raises(UsageError, match="does not keep the keys and values of all 12 tokens"):
        run_pass(tf.MistralForCausalLM(config).eval(), batch)


def test_a_model_of_which_some_layers_keep_no_keys_is_refused(batch):
    config = tf.Lfm2Config(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"] * 2,
    )  # fmt: skip
    with torch.no_grad(), pytest.raises(UsageError, match="of all 12 tokens in all 4 layers"):
        run_pass(tf.Lfm2ForCausalLM(config).eval(), batch)


def test_gradient_checkpointing_is_refused(batch):
    model = random_model("qwen2", layers=2).train()
    model.activation_checkpointing_enable()
    with pytest.raises(UsageError, match="gradient checkpointing"):
        run_pass(model, batch)


def test_keys_and_values_are_of_one_layer():
    with pytest.raises(UsageError, match="of one layer"):
        KeyValues(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 5, 4))
