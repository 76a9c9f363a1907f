"""Host replay names the module and the operator, whatever the data reaches, and never a healthy one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import srdd
from hal.models import load_model
from hal.registry import get_backend
from hal.structure import find_layer_stack
from srdd.faults import Fault, simulate
from srdd.replay.module import is_poisoned
from tests.conftest import in_turn

FAMILIES = ("qwen2", "gemma2", "mixtral", "gpt2", "gpt_neox", "bert")


def found(report):
    return [(finding.layer, finding.site, finding.operator) for finding in report.findings]


@pytest.mark.parametrize(
    ("family", "dtype"), in_turn(FAMILIES, [torch.float32, torch.bfloat16, torch.float16]), ids=str
)
def test_a_healthy_model_is_reported_healthy_in_every_family_and_dtype(make_model, family, dtype):
    report = srdd.scan(make_model(family, layers=2, dtype=dtype))
    assert report.verdict == "healthy", report.findings
    assert not report.measurements.notes
    assert all(layer.replay for layer in report.measurements.layers)
    assert report.cost.forward_equivalents <= 10


@pytest.mark.parametrize(("family", "kind"), in_turn(FAMILIES, ["dead_zone", "bias", "saturation"]))
def test_a_fault_in_one_unit_of_a_layer_is_found_at_that_layer(make_model, family, kind):
    model = make_model(family, layers=2)
    with simulate(model, [Fault(kind, 1, units=1, magnitude=0.8, seed=3)]) as active:
        report = srdd.scan(model)
    assert active[0].changed > 0, "a fault that changes nothing is none"
    assert found(report) == [(1, find_layer_stack(model).site(1), "")]


@pytest.mark.parametrize(
    "site", ["input_layernorm", "self_attn", "self_attn.k_proj", "mlp", "mlp.act_fn", "mlp.down_proj"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fault_in_a_submodule_is_found_at_that_submodule(make_model, site, dtype):
    model = make_model("qwen2", layers=2, dtype=dtype)
    with simulate(model, [Fault("bias", 0, site=site, sparsity=0.1)]):
        report = srdd.scan(model)
    assert found(report) == [(0, f"model.layers.0.{site}", "")]
    assert report.findings[0].kind == "bias"


@pytest.mark.parametrize(
    ("operator", "site"),
    [("silu", "model.layers.1.mlp.act_fn"), ("attention", "model.layers.1.self_attn"), ("linear", "model.layers.1")],
)
def test_a_faulty_operator_is_named_with_what_contains_all_its_calls(make_model, operator, site):
    model = make_model("qwen2", layers=2)
    with simulate(model, [Fault("bias", 1, operator=operator)]):
        report = srdd.scan(model)
    assert found(report) == [(1, site, operator)]


@pytest.mark.parametrize(
    ("site", "dtype"), in_turn(["q_proj", "k_proj", "v_proj"], [torch.float32, torch.bfloat16]), ids=str
)
def test_who_makes_values_overflow_is_named_and_not_the_attention_that_meets_them(make_model, site, dtype):
    """Flipped exponents give NaN, infinity and values near it, of which attention kernels make zeros or worse."""
    model = make_model("qwen2", layers=2, dtype=dtype)
    for seed in range(3):
        with simulate(model, [Fault("bit_flip", 0, site=f"self_attn.{site}", sparsity=0.1, seed=seed)]):
            report = srdd.scan(model)
        assert found(report) == [(0, f"model.layers.0.self_attn.{site}", "")]
        assert report.findings[0].kind == "bit_flip"


@pytest.mark.parametrize(
    ("values", "poisoned"),
    [
        ([1.0, -1e9], False),
        ([-torch.inf, torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min], False),
        ([torch.inf], True),
        ([torch.nan], True),
        ([-2e38], True),
        ([], False),
    ],
)
def test_what_masks_are_filled_with_is_no_poison(values, poisoned):
    assert is_poisoned([torch.ones(2), torch.tensor(values)]) is poisoned


def test_a_clamp_above_every_value_of_a_submodule_is_found(make_model):
    model = make_model("qwen2", layers=2)
    target = find_layer_stack(model).layers[1].mlp.up_proj
    seen = []
    with torch.no_grad():
        handle = target.register_forward_hook(lambda _m, _a, output: seen.append(float(output.abs().max())))
        srdd.scan(model, level="quick")
        handle.remove()
    limit = 4 * seen[0]
    target.register_forward_hook(lambda _m, _a, output: output.clamp(-limit, limit))
    report = srdd.scan(model)
    assert found(report) == [(1, "model.layers.1.mlp.up_proj", "")]
    assert report.findings[0].kind == "saturation"
    assert report.measurements.layers[1].replay, "passive data never reached the clamp"


def test_a_patched_forward_is_compared_with_the_class_s_own(make_model):
    model = make_model("llama", layers=2)
    attention = find_layer_stack(model).layers[0].self_attn
    original = attention.forward
    attention.forward = lambda *args, **kwargs: tuple(
        1.01 * value if isinstance(value, torch.Tensor) and value.dim() == 3 else value
        for value in original(*args, **kwargs)
    )
    assert found(srdd.scan(model)) == [(0, "model.layers.0.self_attn", "")]


def test_one_flipped_bit_of_one_weight_is_named(make_model, tmp_path):
    make_model("qwen2", layers=2, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = load_model(tmp_path, get_backend("cpu-reference")).model
    weight = find_layer_stack(model).layers[1].self_attn.o_proj.weight
    with torch.no_grad():
        weight.view(torch.int16)[9, 4] ^= 1 << 12
    (finding,) = srdd.scan(model, checkpoint=tmp_path).findings
    assert (finding.layer, finding.site, finding.kind) == (1, "model.layers.1.self_attn.o_proj", "bit_flip")
    assert "[9, 4]" in finding.suggestion
    assert "bit 12" in finding.suggestion


def test_damage_outside_the_layers_is_named(make_model, tmp_path):
    make_model("gpt2", layers=2).save_pretrained(tmp_path)
    model = load_model(tmp_path, get_backend("cpu-reference")).model
    with torch.no_grad():
        model.transformer.wpe.weight[5, 5] = 3.0
        model.transformer.ln_f.weight[1] = -1.0
    places = [(finding.layer, finding.site) for finding in srdd.scan(model, checkpoint=tmp_path).findings]
    assert sorted(places) == [(0, "transformer.wpe"), (1, "transformer.ln_f")]


def test_a_wrong_epsilon_is_found_where_it_matters(make_model):
    model = make_model("llama", layers=2)
    norm = find_layer_stack(model).layers[0].input_layernorm
    norm.variance_epsilon = 1e-2
    assert found(srdd.scan(model)) == [(0, "model.layers.0.input_layernorm", "")]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.inner = nn.Linear(16, 16)

    def forward(self, x):
        return x + torch.tanh(self.inner(self.norm(x)))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return x


def test_a_model_outside_transformers_is_replayed_too():
    torch.manual_seed(0)
    model = Plain()
    assert srdd.scan(model).verdict == "healthy"
    with simulate(model, [Fault("dead_zone", 2, site="inner", units=2)]):
        assert found(srdd.scan(model)) == [(2, "blocks.2.inner", "")]


class AddsInPlace(nn.Module):
    """A block that adds one part's result to another's where that lies, as Falcon does."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)

    def forward(self, x):
        y = self.first(x)
        y += self.second(x)
        return x + y


class AsksForLimits(nn.Module):
    """A block that fills a mask with the smallest number of its activations' dtype, made in float32, as XGLM does."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x):
        y = self.inner(x)
        return x + torch.max(y, torch.tensor(torch.finfo(y.dtype).min))


class Raises(nn.Module):
    """A block whose code does not take float64."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x):
        if x.dtype is torch.float64:
            raise ValueError("this code knows float32")
        return x + self.inner(x)


def plain(block):
    torch.manual_seed(0)
    model = Plain()
    model.blocks = nn.ModuleList(block() for _ in range(3))
    return model


@pytest.mark.parametrize("block", [AddsInPlace, AsksForLimits])
def test_code_that_a_replay_could_stumble_over_is_healthy(block):
    model = plain(block)
    report = srdd.scan(model)
    assert report.findings == ()
    assert not [note for note in report.diagnosis.notes if "not replayed" in note]


def test_a_module_that_cannot_be_replayed_is_noted_and_its_parts_still_are():
    model = plain(Raises)
    report = srdd.scan(model)
    assert report.findings == ()
    assert any("blocks.0: not replayed" in note and "knows float32" in note for note in report.diagnosis.notes)
    with simulate(model, [Fault("bias", 1, site="inner", units=1)]):
        assert (1, "blocks.1.inner", "") in found(srdd.scan(model))


def test_a_stream_in_float32_of_a_model_in_bfloat16_is_judged_by_the_weights_roundings():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x):
            return x.float() + self.inner(x.to(self.inner.weight.dtype))

    model = plain(Mixed).to(torch.bfloat16)
    assert srdd.scan(model).findings == ()
