"""Checksums of the products inside real layers."""

import pytest
import torch

import srdd
from srdd.faults import parse_fault, simulate


def scan(model):
    return srdd.scan(model, level="quick", probes=["checksum"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["qwen2", "llama", "mixtral", "bert"])
def test_sound_products_stay_within_their_bound(make_model, family, dtype):
    report = scan(make_model(family).to(dtype))
    assert report.verdict == "healthy"
    assert all(0 < row.checksum.residual < 1 for row in report.measurements.layers)
    assert report.cost.forward_equivalents == 2


@pytest.mark.parametrize("family", ["qwen2", "llama", "bert"])
def test_sound_products_of_subnormal_numbers_stay_within_it_too(make_model, family):
    model = make_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.03 if parameter.dim() > 1 else 1)
    assert scan(model.to(torch.float16)).verdict == "healthy"


@pytest.mark.parametrize("fault", ["bias", "dead_zone", "scale", "stuck_at"])
def test_a_damaged_product_is_named_without_the_host(make_model, fault):
    model = make_model("qwen2")
    with simulate(model, [parse_fault(f"{fault}@2:site=mlp.down_proj,operator=linear")]):
        [finding] = scan(model).findings
    assert (finding.layer, finding.site, finding.operator) == (2, "model.layers.2.mlp.down_proj", "linear")
    assert finding.evidence[0].probe == "checksum"


def test_a_layer_without_linear_modules_has_no_checksum(make_model):
    assert all(row.checksum is None for row in scan(make_model("gpt2")).measurements.layers)
