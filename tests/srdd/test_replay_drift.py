"""Roundings that lean one way are seen in whole layers, modules and single units; sound ones do not lean."""

import pytest
import torch

import srdd
from srdd.faults import parse_fault, simulate


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
