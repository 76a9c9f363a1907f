"""Values of an attention that bring each unit of their mean up, whatever its weights."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

import srdd
from hal.structure import find_layer_stack
from srdd.faults import Fault, simulate
from srdd.replay.alike import with_values_alike
from srdd.replay.capture import OperatorCall, record
from srdd.replay.compare import compare_mean
from srdd.replay.module import own_values
from srdd.replay.part import run_part, unchanged
from srdd.replay.raised import OUTSTANDING
from tests.conftest import FAMILIES, in_turn


def layer_call(model, index=1):
    """A layer of a model and its call on four sequences of tokens."""
    layer = find_layer_stack(model).layers[index]
    ids = torch.arange(4 * 24).reshape(4, 24) % 300
    model.config.use_cache = False
    with torch.no_grad(), record(layer) as trees:
        model(ids)
    return layer, trees[0]


@pytest.mark.parametrize("kernel", ["default", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_unit_of_an_attentions_mean_comes_up_both_ways(make_model, family, kernel):
    model = make_model(family, layers=2)
    if kernel != "default":
        model.set_attn_implementation(kernel)
    layer, tree = layer_call(model)
    asked = [call for call in map(with_values_alike, tree.walk()) if call is not None]
    assert len(asked) == 1  # the attention, and nothing else
    with torch.no_grad():
        (run,) = run_part(layer, asked[0], torch.device("cpu"), unchanged)
    before = max(float(value.abs().max()) for value in own_values(asked[0]))
    means = [value for value in own_values(run) if value.abs().max() > 2 * before]
    assert means
    for mean in means:
        units = mean.reshape(-1, mean.shape[-1])
        largest = float(units.abs().max())
        assert float(units.amax(0).min()) > 0.99 * largest
        assert float(units.amin(0).max()) < -0.99 * largest
    assert all(child.stub and not child.children for child in run.children)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_what_scores_are_made_of_stays_as_it_was(make_model, family):
    _, tree = layer_call(make_model(family, layers=2))
    own, asked = next((call, altered) for call in tree.walk() if (altered := with_values_alike(call)) is not None)
    for child, stub in zip(own.children, asked.children, strict=True):
        if isinstance(child.output, torch.Tensor) and not torch.equal(child.output, stub.output):
            changed = (child.output != stub.output).flatten(0, 1).any(0)
            fused = child.name.endswith(("c_attn", "query_key_value"))
            assert float(changed.float().mean()) == pytest.approx(1 / 3 if fused else 1)
            values = child.output[..., changed]
            raised = float(stub.output[..., changed].max()) / float(values.abs().max())
            assert OUTSTANDING / 2 < raised < 1.01 * OUTSTANDING  # a power of two below, and its last bit
            break
    else:
        pytest.fail("no part returned other values")


class Values(nn.Module):
    """An attention of one head."""

    def __init__(self, value):
        super().__init__()
        self.query, self.value = nn.Linear(16, 16), value

    def forward(self, x):
        query, value = self.query(x), self.value(x)
        return nn.functional.scaled_dot_product_attention(query[:, None], x[:, None], value[:, None])[:, 0]


class Fill(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        return torch.full_like(x, self.number)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(16, 16),  # no mean
        nn.Sequential(nn.Linear(16, 8), nn.Softmax(-1), nn.Linear(8, 16)),
        Values(Fill(0.0)),  # values of no size
        Values(Fill(torch.nan)),
        Values(Fill(torch.inf)),
        Values(nn.Sequential()),  # values that no part returned
    ],
)
def test_what_is_no_attention_or_has_no_values_to_raise_is_left_alone(module):
    x = torch.randn(2, 8, 16)
    if isinstance(module, Values) and isinstance(module.value, nn.Sequential):
        module.value.forward = lambda x: (x + 1,)
        module.forward = lambda x: nn.functional.scaled_dot_product_attention(x, x, module.value(x)[0])
    with torch.no_grad(), record(module) as trees:
        module(x)
    assert with_values_alike(trees[0]) is None


@pytest.mark.parametrize(
    ("family", "dtype"), in_turn(["llama", "gpt2", "bert"], [torch.float32, torch.bfloat16, torch.float16]), ids=str
)
def test_a_clamp_in_one_unit_of_attention_is_found_in_its_operator(make_model, family, dtype):
    model = make_model(family, layers=2, dtype=dtype)
    for seed in range(3):
        with simulate(model, [Fault(kind="saturation", layer=1, operator="attention", units=1, seed=seed)]):
            found = srdd.scan(model).findings
        assert [(finding.layer, finding.operator, finding.kind) for finding in found] == [
            (1, "attention", "saturation")
        ], seed


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_clamp_of_one_unit_above_every_value_seen_is_found(make_model, family):
    model = make_model(family, layers=2)
    fault = Fault("saturation", layer=1, operator="attention", units=1, magnitude=2**-30, absolute=True, seed=2)
    with simulate(model, [fault]):
        found = srdd.scan(model).findings
    assert [(finding.layer, finding.operator, finding.kind) for finding in found] == [(1, "attention", "saturation")]


@pytest.mark.parametrize(
    ("dtype", "kernel", "family"),
    in_turn(product([torch.bfloat16, torch.float16], ["default", "eager"]), ["llama", "gpt2", "bert"]),
    ids=str,
)
def test_an_attention_that_truncates_its_last_bit_is_named(make_model, family, dtype, kernel):
    model = make_model(family, layers=2, dtype=dtype)
    operator = "attention"
    if kernel == "eager":
        model.set_attn_implementation(kernel)
        operator = "matmul"
    asked = [site for layer in srdd.scan(model).measurements.layers for site in layer.replay if site.operator]
    assert [(site.operator, site.drift) for site in asked] == [(operator, 0.0)] * 2  # a sound one is right to the bit
    for options in ({}, {"units": 1}, {"mode": "away"}):
        with simulate(model, [Fault("rounding", layer=1, operator=operator, **options)]):
            found = srdd.scan(model).findings
        assert [(entry.layer, entry.operator, entry.kind) for entry in found] == [(1, operator, "rounding")], options


def test_roundings_of_weights_to_either_side_are_no_lean():
    """As kernels do that round the weights of a mean to the values' dtype, and do not divide by the sum of those."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(4, 2, 64, 64, generator=generator)
    weights = (torch.softmax(scores, -1) * (1 + 2**-8 * torch.randn(4, 2, 64, 1, generator=generator))).bfloat16()
    values = torch.full((4, 2, 64, 16), 1 + 2**-7).bfloat16()
    exact = torch.matmul(weights.double(), values.double())
    moved = torch.matmul(torch.softmax(scores, -1), values.float())
    entry = OperatorCall("matmul", torch.matmul, "", (weights, values), {}, moved.bfloat16())
    assert compare_mean(entry).lean.drift < 0.5
    entry.result = (exact * (1 - 2**-8)).bfloat16()
    assert compare_mean(entry).lean.drift > 1


def test_in_float32_a_mean_of_equals_is_not_known_to_the_last_bit():
    weights = torch.softmax(torch.randn(2, 8, 8), -1)
    values = torch.ones(2, 8, 4)
    entry = OperatorCall("bmm", torch.bmm, "", (weights, values), {}, torch.bmm(weights, values))
    assert compare_mean(entry) is None
