"""A checkpoint's weights by the names, and in the form, that they have in a model."""

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from hal.model_weights import ModelWeights
from hal.structure import find_layer_stack

FAMILIES = ("llama", "qwen2", "gpt2", "mixtral", "bert")


def source(model, directory):
    return ModelWeights(model, find_layer_stack(model), directory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_saved_model_is_found_bit_for_bit(make_model, tmp_path, family, dtype):
    model = make_model(family, layers=2, dtype=dtype)
    model.save_pretrained(tmp_path)
    weights = source(model, tmp_path)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert torch.equal(weights.tensor(name), parameter), name
    assert not weights.absent


def test_merged_experts_are_those_of_the_checkpoint_not_of_the_model(make_model, tmp_path):
    model = make_model("mixtral", layers=2)
    model.save_pretrained(tmp_path)
    experts = model.model.layers[1].mlp.experts.down_proj
    right = experts.detach().clone()
    with torch.no_grad():
        experts.zero_()
    assert torch.equal(source(model, tmp_path).tensor("model.layers.1.mlp.experts.down_proj"), right)


def test_the_precision_is_the_checkpoints_own(make_model, tmp_path):
    model = make_model("mixtral", layers=2)
    model.save_pretrained(tmp_path)
    right = model.model.layers[0].mlp.experts.down_proj.detach().clone()
    model.bfloat16()
    assert torch.equal(source(model, tmp_path).tensor("model.layers.0.mlp.experts.down_proj"), right)


def test_shared_weights_are_found_under_each_name(make_model, tmp_path):
    model = make_model("gpt2", layers=2)
    model.save_pretrained(tmp_path)
    assert torch.equal(source(model, tmp_path).tensor("lm_head.weight"), model.transformer.wte.weight)


def test_an_encoder_alone_finds_its_own_weights_beside_a_decoder_of_the_same_names(tmp_path):
    whole = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8))
    whole.save_pretrained(tmp_path)
    encoder = whole.get_encoder()
    weights = source(encoder, tmp_path)
    for name, parameter in find_layer_stack(encoder).layers[1].named_parameters():
        assert torch.equal(weights.tensor(f"block.1.{name}"), parameter), name


def test_parameters_that_the_checkpoint_lacks_are_noted(make_model, tmp_path):
    make_model("bert", layers=2).save_pretrained(tmp_path)
    model = make_model("bert", layers=2)
    model.encoder.layer[1].adapter = nn.Linear(4, 4)
    weights = source(model, tmp_path)
    assert weights.tensor("encoder.layer.1.adapter.weight") is None
    assert weights.tensor("encoder.layer.1.no_parameter_at_all") is None
    assert weights.absent == {"encoder.layer.1.adapter.weight"}


def test_a_checkpoint_of_another_shape_has_nothing(make_model, tmp_path):
    make_model("llama", layers=2, hidden=32).save_pretrained(tmp_path)
    model = make_model("llama", layers=2, hidden=64)
    assert source(model, tmp_path).tensor("model.layers.0.self_attn.q_proj.weight") is None
