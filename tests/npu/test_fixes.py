"""Detours, verify-fix and the fleet's probe on a device that is not the host."""

from __future__ import annotations

import pytest
import torch

from hal.detour import detour
from srdd.fleet.probe import probe
from srdd.verify_fix import verify_fix
from srdd.verify_fix.run import place

IDS = torch.arange(24).reshape(2, 12) * 7 % 300


@pytest.fixture
def model(make_model, npu):
    return make_model("qwen2", layers=3, hidden=32).to(npu.device)


@pytest.fixture
def hf32_whatever_is_asked(arithmetic):
    """A device that multiplies in HF32 although the scan pins the option off."""
    from simulator import switches

    def disobey(model):
        return model.register_forward_pre_hook(lambda *_: switches.put("hf32_matmul", True))

    with arithmetic(hf32_matmul=True):
        yield disobey


def test_a_layer_taken_to_the_host_computes_there_and_hands_its_result_back(model, npu):
    places = []
    layer = model.model.layers[1]
    layer.mlp.register_forward_hook(lambda _module, args, _output: places.append(args[0].device.type))
    layer.register_forward_hook(lambda _module, _args, output: places.append(output.device.type))
    model.model.layers[2].register_forward_hook(lambda _module, args, _output: places.append(args[0].device.type))
    with detour(model, "model.layers.1", host=True), torch.no_grad():
        assert layer.mlp.up_proj.weight.device.type == "cpu"
        logits = model(IDS.to(npu.device)).logits
    assert places == ["cpu", "cpu", "npu"]
    assert logits.device == npu.device
    assert layer.mlp.up_proj.weight.device == npu.device


def test_text_is_generated_with_one_layer_and_its_cache_on_the_host(model, npu):
    options = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}
    ids = IDS.to(npu.device)
    with detour(model, "model.layers.1", host=True) as taken:
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert found.device == npu.device
    assert taken.calls == 4


def test_an_operator_taken_to_the_host_comes_back(model, npu):
    with detour(model, "model.layers.1.mlp", "linear", host=True) as taken, torch.no_grad():
        assert model(IDS.to(npu.device)).logits.device == npu.device
    assert taken.calls == 3


def test_the_host_cures_a_layer_of_a_device_that_multiplies_in_hf32(model, npu, hf32_whatever_is_asked):
    handle = hf32_whatever_is_asked(model)
    outcome = verify_fix(model, None, npu, place(model, 1, host=True))
    handle.remove()
    assert {finding.layer for finding in outcome.before.findings} == {0, 1, 2}
    assert {finding.layer for finding in outcome.after.findings} == {0, 2}
    assert outcome.verdict == "cured"


def test_one_module_on_the_host_is_no_cure_of_a_layer_whose_other_modules_fail_too(model, npu, hf32_whatever_is_asked):
    handle = hf32_whatever_is_asked(model)
    outcome = verify_fix(model, None, npu, place(model, 1, "mlp.down_proj", host=True))
    handle.remove()
    assert outcome.verdict == "not cured"


def test_the_fleets_probe_repeats_itself_on_a_device_and_sees_other_arithmetic(model, npu, arithmetic):
    records, unstable = probe(model, npu, IDS, trials=2)
    assert unstable == []
    with arithmetic(reorder=True):
        others, _ = probe(model, npu, IDS, trials=1)
    differing = {(record.stage, record.layer) for record, other in zip(records, others, strict=True) if record != other}
    assert {(stage, layer) for stage in ("forward", "plain", "amplified") for layer in range(3)} <= differing
    assert not any(stage == "weights" for stage, _ in differing)
