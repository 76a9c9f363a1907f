"""A constant other than the configured one is named, with the value that the device must have used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import srdd
from hal.structure import find_layer_stack
from srdd.faults import Fault, simulate
from srdd.replay.constants import repairing_constant
from tests.conftest import in_turn


def wrong_constants(report):
    return [row.constant for layer in report.measurements.layers for row in layer.replay if row.constant]


@pytest.mark.parametrize(
    ("family", "site", "name", "factor", "dtype", "precision"),
    in_turn(
        [
            ("llama", "self_attn", "scaling", 3.0),
            ("llama", "post_attention_layernorm", "variance_epsilon", 3.0),
            ("llama", "post_attention_layernorm", "variance_epsilon", 1e3),
            ("bert", "attention.output.LayerNorm", "eps", 1e7),
        ],
        [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.01)],
    ),
    ids=str,
)
def test_the_value_that_acts_is_found(make_model, family, site, name, factor, dtype, precision):
    model = make_model(family, layers=2, dtype=dtype)
    module = find_layer_stack(model).layers[1].get_submodule(site)
    configured = getattr(module, name)
    with simulate(model, [Fault("wrong_constant", 1, site=site, factor=factor)]):
        report = srdd.scan(model)
    (finding,) = report.findings
    assert (finding.layer, finding.kind) == (1, "wrong_constant")
    assert finding.site.endswith(site)
    (constant,) = wrong_constants(report)
    assert (constant.name, constant.configured) == (name, configured)
    assert constant.acting == pytest.approx(factor * configured, rel=precision)
    assert f"{name} acts as" in finding.suggestion


@pytest.mark.parametrize(
    ("kind", "site"),
    in_turn(["scale", "bias", "dead_zone", "saturation", "noise"], ["self_attn", "input_layernorm"]),
)
def test_other_faults_of_modules_with_constants_are_not_put_down_to_them(make_model, kind, site):
    model = make_model("qwen2", layers=2)
    with simulate(model, [Fault(kind, 0, site=site)]):
        report = srdd.scan(model)
    assert report.findings[0].layer == 0
    assert not wrong_constants(report)


def test_the_copy_is_left_with_its_own_constant(make_model):
    model = make_model("llama", layers=2)
    with simulate(model, [Fault("wrong_constant", 0, site="self_attn")]):
        assert srdd.scan(model).findings
    assert srdd.scan(model).verdict == "healthy"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_epsilon_far_below_the_data_is_seen_too(make_model, dtype):
    model = make_model("bert", layers=2, dtype=dtype)
    with simulate(model, [Fault("wrong_constant", 0, site="attention.output.LayerNorm", factor=5.0)]):
        report = srdd.scan(model)
    (constant,) = wrong_constants(report)
    assert constant.configured == 1e-12
    assert constant.acting == pytest.approx(5e-12, rel=0.1)


@pytest.mark.parametrize("config", [{"sliding_window": 4}, "tiny", None], ids=str)
def test_a_module_may_hold_anything_under_the_name_of_its_configuration(config):
    module = nn.Identity()
    module.config = config
    assert repairing_constant(module, lambda: None, lambda _replay: False) is None
