"""Values that lean one way are seen in whole layers, modules and single units; sound ones do not lean."""

import copy
import re
from functools import partial

import pytest
import torch

import srdd
from hal.structure import find_layer_stack
from srdd.faults import parse_fault, simulate
from tests.conftest import in_turn


def drifts(report):
    return [
        max((site.drift for site in row.replay if site.drift == site.drift), default=0)
        for row in report.measurements.layers
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_sound_roundings_do_not_lean(make_model, family, dtype):
    report = srdd.scan(make_model(family).to(dtype))
    assert report.verdict == "healthy"
    assert max(drifts(report)) < 0.7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("fault", ["rounding@2", "rounding@2:mode=away", "rounding@2:units=1"])
def test_truncating_the_last_bit_is_found_although_it_stays_within_rounding(make_model, fault, dtype):
    model = make_model("qwen2").to(dtype)
    with simulate(model, [parse_fault(fault)]):
        report = srdd.scan(model)
    assert [(finding.layer, finding.kind) for finding in report.findings] == [(2, "rounding")]


def test_a_matrix_product_that_truncates_is_named(make_model):
    model = make_model("llama").to(torch.bfloat16)
    with simulate(model, [parse_fault("rounding@1:site=mlp.down_proj")]):
        [finding] = srdd.scan(model).findings
    assert (finding.site, finding.kind) == ("model.layers.1.mlp.down_proj", "rounding")


SITES = ("input_layernorm", "mlp.act_fn", "mlp.down_proj", "self_attn.q_proj", "mlp", "")


@pytest.mark.parametrize(("site", "dtype"), in_turn(SITES, [torch.bfloat16, torch.float16]), ids=str)
def test_a_common_factor_within_the_bound_is_a_scale(make_model, site, dtype):
    """Five roundings: an element alone is allowed more."""
    eps = torch.finfo(dtype).eps
    factor = 1 + 2.5 * eps
    model = make_model("qwen2").to(dtype)
    with simulate(model, [parse_fault(f"scale@1:factor={factor}" + (f",site={site}" if site else ""))]):
        [finding] = srdd.scan(model).findings
    assert (finding.layer, finding.site, finding.kind) == (1, ".".join(filter(None, ["model.layers.1", site])), "scale")
    [told] = re.findall(r"the factor is about ([0-9.]+)\.", finding.suggestion)
    assert float(told) == pytest.approx(factor, abs=eps)


@pytest.mark.parametrize(
    ("family", "site"), [("llama", "post_attention_layernorm"), ("bert", "attention.output.LayerNorm")]
)
def test_a_common_factor_in_one_unit_of_a_norm_is_found(make_model, family, site):
    model = make_model(family).to(torch.bfloat16)
    with simulate(model, [parse_fault(f"scale@1:factor=0.98,units=1,site={site}")]):
        [finding] = srdd.scan(model).findings
    assert (finding.layer, finding.site.endswith(site), finding.kind) == (1, True, "scale")


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "bert", "gemma2"])
def test_a_device_that_rounds_its_norms_and_activations_in_fewer_steps_does_not_lean(make_model, family):
    """As fused kernels do: each is computed in float64, and rounded once."""
    model = make_model(family).to(torch.bfloat16)
    for layer in find_layer_stack(model).layers:
        for name, part in layer.named_modules():
            if "norm" in name.lower() or "act" in name:
                part.register_forward_hook(partial(in_one_step, copy.deepcopy(part).double()))
    report = srdd.scan(model)
    assert report.verdict == "healthy"
    assert max(drifts(report)) < 0.7


def in_one_step(wide, _part, args, output):
    return wide(*(value.double() for value in args)).to(output.dtype)
