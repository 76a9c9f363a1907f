"""Healthy models whose values are at the edge of what their dtype can hold are healthy; faults in them are found."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import srdd
from hal.structure import find_layer_stack
from tests.conftest import random_model

FLOAT16, BFLOAT16 = torch.float16, torch.bfloat16
# Scores beyond float16 on the way to a finite result, experts that overflow, and scores so large that bfloat16 makes
# many of them equal.
CASES = [
    ("bert", FLOAT16, "eager", 0.2),
    ("bert", FLOAT16, "eager", 3.0),
    ("llama", FLOAT16, "eager", 3.0),
    ("gpt2", FLOAT16, "eager", 10.0),
    ("mixtral", FLOAT16, "sdpa", 3.0),
    ("bert", BFLOAT16, "eager", 3.0),
    ("bert", BFLOAT16, "eager", 10.0),
    ("gpt2", BFLOAT16, "eager", 10.0),
]


def model(family, dtype, attention, times):
    """A random network with its matrices `times` as large as usual."""
    made = random_model(family, layers=3, hidden=128, dtype=torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(times)
    made.set_attn_implementation(attention)
    return made.to(dtype)


@pytest.mark.parametrize(("family", "dtype", "attention", "times"), CASES)
def test_a_healthy_model_is_healthy_however_large_its_values(family, dtype, attention, times):
    assert srdd.scan(model(family, dtype, attention, times)).findings == ()


@pytest.mark.parametrize(("family", "dtype", "attention", "times"), CASES)
def test_a_fault_in_one_unit_is_still_found(family, dtype, attention, times):
    faulty = model(family, dtype, attention, times)

    def damage(_module, _args, output):
        output[..., 3] += 0.5 * output.float().std().to(output.dtype)
        return output

    find_layer_stack(faulty).layers[1].register_forward_hook(damage)
    assert [finding.layer for finding in srdd.scan(faulty).findings][:1] == [1]


def test_infinity_under_the_models_own_input_is_found_where_it_arises():
    faulty = model("llama", FLOAT16, "eager", 3.0)
    find_layer_stack(faulty).layers[1].mlp.act_fn.register_forward_hook(lambda _module, _args, output: output * 1e4)
    (finding,) = srdd.scan(faulty).findings
    assert (finding.layer, finding.site) == (1, "model.layers.1.mlp.act_fn")


@pytest.mark.parametrize(
    ("kind", "dtype", "times"), [("mamba", BFLOAT16, 3.0), ("rwkv", BFLOAT16, 3.0), ("rwkv", FLOAT16, 1.0)]
)
def test_recurrences_whose_values_underflow_are_healthy(kind, dtype, times):
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "state_size": 4}
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, initializer_range=0.1)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(times)
    assert srdd.scan(made.to(dtype)).findings == ()
