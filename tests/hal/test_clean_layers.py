"""A clean layer inherits nothing from the model that is scanned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hal.checkpoint import CheckpointWeights
from hal.clean_layers import CleanLayers
from hal.errors import ModelError
from hal.structure import find_layer_stack


def clean(model, index=1, checkpoint=None):
    weights = CheckpointWeights(checkpoint) if checkpoint else None
    return CleanLayers(model, find_layer_stack(model), weights).layer(index)


def test_a_clean_layer_holds_the_same_weights_in_float64(make_model):
    model = make_model("qwen2", dtype=torch.bfloat16)
    layer = clean(model)
    original = find_layer_stack(model).layers[1]
    for name, parameter in layer.named_parameters():
        assert parameter.dtype == torch.float64
        assert torch.equal(parameter, original.get_parameter(name).double()), name


def test_hooks_are_not_inherited(make_model):
    model = make_model("llama")
    find_layer_stack(model).layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    x = torch.randn(1, 3, 64, dtype=torch.float64)
    assert torch.isfinite(clean(model).mlp(x)).all()


def test_a_patched_forward_is_not_inherited(make_model):
    model = make_model("llama")
    find_layer_stack(model).layers[1].mlp.forward = torch.zeros_like
    x = torch.randn(1, 3, 64, dtype=torch.float64)
    assert clean(model).mlp(x).abs().max() > 0


def test_weights_come_from_the_checkpoint_so_damaged_memory_is_not_inherited(make_model, tmp_path):
    model = make_model("qwen2")
    model.save_pretrained(tmp_path)
    sound = find_layer_stack(model).layers[1].mlp.up_proj.weight.detach().clone()
    with torch.no_grad():
        find_layer_stack(model).layers[1].mlp.up_proj.weight.zero_()
    assert torch.equal(clean(model, checkpoint=tmp_path).mlp.up_proj.weight, sound.double())
    assert not clean(model).mlp.up_proj.weight.any(), "without a checkpoint the model's own weights are all there is"


def test_checkpoint_weights_are_rounded_to_the_dtype_the_device_holds(make_model, tmp_path):
    model = make_model("qwen2")
    model.save_pretrained(tmp_path)
    held = find_layer_stack(model.to(torch.bfloat16)).layers[1].mlp.up_proj.weight
    assert torch.equal(clean(model, checkpoint=tmp_path).mlp.up_proj.weight, held.double())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.inner(x)


def test_a_model_outside_transformers_is_copied_and_stripped():
    model = nn.Sequential(Block(), Block())
    model[1].register_forward_hook(lambda *_: 1 / 0)
    model[1].inner.forward = torch.zeros_like
    x = torch.randn(2, 4, dtype=torch.float64)
    layer = clean(model)
    assert torch.equal(layer(x), x + nn.functional.linear(x, layer.inner.weight, layer.inner.bias))


def test_a_layer_that_cannot_be_rebuilt_is_a_model_error(make_model):
    model = make_model("qwen2")
    find_layer_stack(model).layers[1].extra = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="layer 1 cannot be rebuilt on the host"):
        clean(model)
