"""Inputs that bring each unit of a module's result above the others in turn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import srdd
from srdd.faults import Fault, simulate
from srdd.replay.capture import ModuleCall, record
from srdd.replay.diverged import ReplayDivergedError
from srdd.replay.part import run_part, unchanged
from srdd.replay.raised import OUTSTANDING, raising, with_results_raised, with_units_raised
from tests.conftest import in_turn

MOST = 1e30


def call_of(module, *args):
    with torch.no_grad(), record(module) as trees:
        module(*args)
    return trees[0]


def reach(y):
    """Of each unit, the largest value as a share of the largest of all."""
    return y.abs().amax(0) / y.abs().max()


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(32, 96),
    units=st.integers(16, 96),
    spread=st.floats(0, 0.3),
    seed=st.integers(0, 99),
    transposed=st.booleans(),
)
def test_nearly_every_unit_of_a_product_comes_near_the_largest(inputs, units, spread, seed, transposed):
    generator = torch.Generator().manual_seed(seed)
    module = Conv1D(units, inputs) if transposed else nn.Linear(inputs, units, bias=False)
    weight = torch.randn(units, inputs, generator=generator) * torch.exp(
        spread * torch.randn(units, 1, generator=generator)
    )
    module.weight.data = weight.T.contiguous() if transposed else weight
    x = torch.randn(64, inputs, generator=generator)
    call = call_of(module, x)
    rows = raising(module, call)(x, 8.0, MOST)
    y = rows @ weight.T
    assert float(y.abs().max()) == pytest.approx(8 * float(call.output.abs().max()), rel=0.05)
    assert float((reach(y) > 0.7).float().mean()) >= 0.9
    assert bool(rows.isfinite().all())


def test_inputs_stay_below_the_limit():
    module = nn.Linear(32, 48)
    x = torch.randn(64, 32)
    rows = raising(module, call_of(module, x))(x, 1e6, 100.0)
    assert float(rows.abs().max()) == pytest.approx(100.0)


def test_weights_that_are_zero_or_not_finite_raise_nothing_to_nan():
    module = nn.Linear(32, 48, bias=False)
    x = torch.randn(64, 32)
    call = call_of(module, x)
    with torch.no_grad():
        module.weight[3], module.weight[5, 7], module.weight[6, 7] = 0.0, torch.nan, torch.inf
    assert bool(raising(module, call)(x, 8.0, MOST).isfinite().all())


def test_each_element_of_what_an_activation_is_given_is_the_largest_somewhere():
    module = nn.SiLU()
    x = torch.randn(10, 32)
    rows = raising(module, call_of(module, x))(x, 8.0, MOST)
    assert torch.equal(reach(rows), torch.ones(32))
    assert float(rows.max()) == pytest.approx(8 * float(x.abs().max()))


@pytest.mark.parametrize(
    ("module", "args"),
    [
        (nn.Embedding(9, 4), (torch.arange(4),)),  # nothing that is given could be raised
        (nn.GLU(), (torch.randn(4, 8),)),
        (nn.Bilinear(4, 4, 3), (torch.randn(4, 4), torch.randn(4, 4))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_neither_a_product_nor_elementwise_is_left_alone(module, args):
    assert raising(module, call_of(module, *args)) is None


def test_a_product_that_gave_zeros_alone_has_no_size_to_go_by():
    module = nn.Linear(8, 4, bias=False)
    assert raising(module, call_of(module, torch.zeros(4, 8))) is None


class Block(nn.Module):
    def __init__(self, twice=False):
        super().__init__()
        self.up, self.act, self.down, self.twice = nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 16), twice

    def forward(self, x):
        y = self.down(self.act(self.up(x)))
        return self.down(self.act(self.up(y))) if self.twice else y


class Layer(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.block = Block(**options)

    def forward(self, x):
        return x + self.block(x)


def test_the_last_product_of_a_part_is_given_what_raises_its_units():
    torch.manual_seed(0)
    layer = Layer()
    own = call_of(layer, torch.randn(2, 32, 16)).children[0]
    raised = with_units_raised(layer, own)
    down = raised.children[-1]
    assert [child.instead is None for child in raised.children] == [True, True, False]
    with torch.no_grad():
        (tree,) = run_part(layer, raised, torch.device("cpu"), unchanged)
    assert float(reach(tree.output.reshape(-1, 16)).min()) > 0.7
    assert float(tree.output.abs().max()) > 0.9 * OUTSTANDING * float(own.output.abs().max())
    assert torch.equal(tree.children[-1].instead, down.instead)
    assert torch.equal(tree.children[-1].args[0], own.children[-1].args[0])  # what the part handed over


@pytest.mark.parametrize(
    "layer", [Layer(twice=True), nn.Sequential(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)))]
)
def test_a_part_whose_last_product_is_called_twice_or_that_has_none_is_called_as_it_was(layer):
    name = "block" if isinstance(layer, Layer) else "0"
    own = next(call for call in call_of(layer, torch.randn(4, 16)).walk() if call.name == name)
    if isinstance(layer, Layer):
        assert with_units_raised(layer, own) is own
    else:
        assert with_units_raised(layer, own).children[0].instead is None
    assert isinstance(own, ModuleCall)


def test_a_part_whose_last_product_was_given_no_row_is_called_as_it_was():
    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x):
            return x.index_add(0, torch.arange(0), self.down(self.up(x[:0])))

    layer = nn.Sequential(Expert())
    own = call_of(layer, torch.randn(4, 16)).children[0]
    assert with_units_raised(layer, own) is own


class Loss(nn.Module):
    def forward(self, x):
        return x.square().mean()


def test_a_single_number_has_no_units():
    assert raising(Loss(), call_of(Loss(), torch.randn(4, 8))) is None
    layer = nn.Sequential(nn.Sequential(nn.Linear(8, 8), Loss()))
    own = call_of(layer, torch.randn(4, 8)).children[0]
    assert with_units_raised(layer, own) is own


class PostNorm(nn.Module):
    """Whose every result lies within the square root of its units."""

    def __init__(self):
        super().__init__()
        self.block, self.norm = Block(), nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(x + self.block(x))


@pytest.mark.parametrize("layer", [Layer(), PostNorm()], ids=lambda layer: type(layer).__name__)
def test_the_parts_of_a_layer_return_what_raises_each_unit_of_it_both_ways(layer):
    own = call_of(layer, torch.randn(2, 32, 16))
    raised = with_results_raised(own)
    for module in layer.children():
        module.register_forward_hook(lambda *_: called.append(True))
    called = []
    with torch.no_grad():
        (tree,) = run_part(layer, raised, torch.device("cpu"), unchanged)
    rows = tree.output.reshape(-1, 16)
    largest = float(own.output.abs().max())
    assert float(rows.amax(0).min()) > 0.9 * OUTSTANDING * largest
    assert float(rows.amin(0).max()) < -0.9 * OUTSTANDING * largest
    assert all(child.stub and not child.children for child in tree.children)
    assert len(called) == len(tree.children)


def test_stubs_compute_nothing_and_leave_the_module_as_it_was():
    layer = Layer()
    own = with_results_raised(call_of(layer, torch.randn(8, 16)))
    patched = layer.block.forward = lambda x: pytest.fail("computed")
    with torch.no_grad():
        run_part(layer, own, torch.device("cpu"), unchanged)
    assert layer.block.forward is patched
    del layer.block.forward
    with torch.no_grad():
        run_part(layer, own, torch.device("cpu"), unchanged)
    assert "forward" not in vars(layer.block)


def test_a_stub_that_is_called_more_often_than_before_says_so():
    layer = Layer()
    own = with_results_raised(call_of(layer, torch.randn(8, 16)))
    layer.forward = lambda x: layer.block(layer.block(x))
    with pytest.raises(ReplayDivergedError, match="'block' was called more often"):
        run_part(layer, own, torch.device("cpu"), unchanged)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(8, 8), torch.randn(4, 8)),  # no parts
        (nn.Sequential(nn.Linear(8, 4)), torch.full((4, 8), torch.nan)),
        (nn.Sequential(nn.Linear(8, 4, bias=False)), torch.zeros(4, 8)),
        (nn.Sequential(Loss()), torch.randn(4, 8)),
    ],
)
def test_a_layer_without_results_to_raise_is_left_alone(layer, x):
    assert with_results_raised(call_of(layer, x)) is None


SITES = {
    "llama": ("self_attn", "mlp", "self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.act_fn", "mlp.down_proj"),
    "gpt2": ("attn", "mlp", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.act", "mlp.c_proj"),
    "bert": ("attention", "attention.output", "output.dense", "intermediate", "attention.self.query"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", SITES)
def test_a_clamp_in_one_unit_of_a_layers_output_is_found(make_model, family, dtype):
    model = make_model(family, layers=2, dtype=dtype)
    for seed in range(2):
        with simulate(model, [Fault(kind="saturation", layer=1, units=1, seed=seed)]):
            found = srdd.scan(model).findings
        assert [(finding.layer, finding.kind) for finding in found] == [(1, "saturation")], (seed, found)


@pytest.mark.parametrize(("family", "dtype"), in_turn(SITES, [torch.float32, torch.bfloat16]), ids=str)
def test_a_clamp_in_one_unit_of_any_part_is_found(make_model, family, dtype):
    model = make_model(family, layers=2, dtype=dtype)
    for seed, site in enumerate(SITES[family]):
        with simulate(model, [Fault(kind="saturation", layer=1, site=site, units=1, seed=seed)]):
            found = srdd.scan(model).findings
        assert [finding.kind for finding in found] == ["saturation"], (site, found)
        assert found[0].layer == 1
        assert found[0].site.endswith(site), (site, found)


@pytest.mark.parametrize("operator", ["silu", "linear"])
def test_a_clamp_in_one_unit_of_an_operator_is_found(make_model, operator):
    model = make_model("llama", layers=2)
    with simulate(model, [Fault(kind="saturation", layer=1, operator=operator, units=1)]):
        found = srdd.scan(model).findings
    assert [(finding.layer, finding.operator, finding.kind) for finding in found] == [(1, operator, "saturation")]
