"""The scan on the simulated npu: same verdicts as on the host, whatever order its sums take."""

from __future__ import annotations

import json

import pytest
import torch
from transformers.integrations import npu_flash_attention

import srdd
from hal.errors import UsageError
from hal.structure import find_layer_stack
from srdd.cli import main
from srdd.faults import Fault, simulate

KINDS = ("dead_zone", "saturation", "bias", "noise", "spike")


@pytest.fixture
def model_on_npu(make_model, npu):
    def make(family, dtype=torch.float32):
        return make_model(family, layers=2, dtype=dtype).to(npu.device)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_healthy_model_is_reported_healthy(model_on_npu, npu, family, dtype):
    report = srdd.scan(model_on_npu(family, dtype), backend=npu)
    assert report.verdict == "healthy", report.findings
    assert report.environment["device_name"].startswith("Ascend910B")


@pytest.mark.parametrize("switch", ["reorder", "flush_subnormal"])
def test_arithmetic_that_is_merely_different_is_healthy(model_on_npu, npu, arithmetic, switch):
    model = model_on_npu("qwen2")
    with arithmetic(**{switch: True}):
        report = srdd.scan(model, backend=npu)
    assert report.verdict == "healthy", report.findings


def test_hf32_products_that_ignore_the_switch_are_found_in_every_layer_and_the_head(model_on_npu, npu, arithmetic):
    from simulator import switches

    model = model_on_npu("qwen2")
    with arithmetic(hf32_matmul=True):
        # The scan pins the option off; a device that does not listen is what is simulated here.
        handle = model.register_forward_pre_hook(lambda *_: switches.put("hf32_matmul", True))
        report = srdd.scan(model, backend=npu)
        handle.remove()
    inside = {finding.layer for finding in report.findings if finding.site.startswith("model.layers.")}
    outside = {finding.site for finding in report.findings if not finding.site.startswith("model.layers.")}
    assert inside == {0, 1}
    assert "lm_head" in outside
    assert outside <= {"lm_head", "model.rotary_emb"}


@pytest.mark.parametrize(("epsilon", "verdict"), [(1e-6, "healthy"), (1e-3, "faulty")])
def test_the_vendor_s_norm_in_place_of_transformers_is_compared_with_it(
    model_on_npu, npu, monkeypatch, epsilon, verdict
):
    import torch_npu
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    def fused(self, x):
        return torch_npu.npu_rms_norm(x, self.weight, epsilon=epsilon)[0]

    monkeypatch.setattr(Qwen2RMSNorm, "forward", fused)
    report = srdd.scan(model_on_npu("qwen2", torch.bfloat16), backend=npu)
    assert report.verdict == verdict, report.findings
    assert "in place of Qwen2RMSNorm.forward" in report.measurements.notes[0]
    if epsilon != 1e-6:
        assert "variance_epsilon acts as" in report.findings[0].suggestion


@pytest.mark.parametrize(("window", "verdict"), [(64, "healthy"), (16, "faulty")])
def test_transformers_flash_attention_on_npu_does_not_know_windows(model_on_npu, npu, window, verdict):
    """Nothing is injected: its call of npu_fusion_attention leaves the window out, so that it is right only for texts
    that are no longer (transformers 5.23, integrations/npu_flash_attention.py).
    """
    model = model_on_npu("mistral", torch.bfloat16)
    model.config.sliding_window = window
    model.set_attn_implementation("flash_attention_2")
    report = srdd.scan(model, backend=npu)
    assert report.verdict == verdict, report.findings
    for finding in report.findings:
        assert finding.site.endswith(".self_attn")
        assert "sliding_window, configured as 16, is ignored" in finding.suggestion


def test_a_kernel_that_mixes_sequences_of_different_lengths_is_found(model_on_npu, npu, monkeypatch):
    """As transformers calls it for a padded batch: a scan's rows are all of one length, and would not meet it."""
    shipped = npu_flash_attention.npu_fusion_attention

    def mixing(*inputs, actual_seq_qlen=None, actual_seq_kvlen=None, **options):
        if actual_seq_qlen is None:
            return shipped(*inputs, **options)
        ends = {"actual_seq_qlen": actual_seq_qlen[-1:], "actual_seq_kvlen": actual_seq_kvlen[-1:]}
        return shipped(*inputs, **ends, **options)

    model = model_on_npu("qwen2", torch.bfloat16)
    model.set_attn_implementation("flash_attention_2")
    assert srdd.scan(model, backend=npu).verdict == "healthy"
    monkeypatch.setattr(npu_flash_attention, "npu_fusion_attention", mixing)
    report = srdd.scan(model, backend=npu)
    assert {finding.site for finding in report.findings} == {
        find_layer_stack(model).site(index) + ".self_attn" for index in range(model.config.num_hidden_layers)
    }


@pytest.mark.parametrize("level", ["quick", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_is_found_at_its_layer(model_on_npu, npu, kind, level):
    model = model_on_npu("qwen2")
    with simulate(model, [Fault(kind, 1)]):
        report = srdd.scan(model, backend=npu, level=level)
    assert [(finding.layer, finding.kind) for finding in report.findings] == [(1, kind)]


def test_the_vendor_s_gelu_is_a_known_difference_and_no_fault(model_on_npu, npu):
    report = srdd.scan(model_on_npu("bert"), backend=npu)
    assert report.verdict == "healthy", report.findings
    assert any("gelu" in note for note in report.diagnosis.notes)


def test_a_fault_beside_the_known_difference_is_still_found(model_on_npu, npu):
    model = model_on_npu("bert")
    with simulate(model, [Fault("bias", 1, site="output.dense", units=1)]):
        report = srdd.scan(model, backend=npu)
    assert [finding.site for finding in report.findings] == [find_layer_stack(model).site(1) + ".output.dense"]


def test_a_model_elsewhere_is_refused_and_not_moved(make_model, npu):
    model = make_model("qwen2", layers=2)
    with pytest.raises(UsageError, match="backend 'npu' runs on 'npu'"):
        srdd.scan(model, backend=npu)
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("level", ["quick", "full"])
def test_the_command_finds_the_bundled_model_healthy(npu, tmp_path, level):
    assert main(["--backend", "npu", "--level", level, "--json", str(tmp_path / "r.json"), "--quiet"]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["backend"] == "npu"
    assert report["cost"]["forward_equivalents"] <= 10


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_finds_the_layer_of_an_injected_fault(npu, tmp_path, kind):
    options = ["--backend", "npu", "--level", "quick", "--json", str(tmp_path / "r.json"), "--quiet"]
    assert main([*options, "--inject", f"{kind}@5"]) == 1
    findings = json.loads((tmp_path / "r.json").read_text())["findings"]
    assert [(finding["layer"], finding["kind"]) for finding in findings] == [(5, kind)]


def test_a_model_on_the_second_device_is_scanned_there(run_python):
    code = (
        "import hal, srdd, torch; from tests.conftest import random_model; b = hal.get_backend('npu', 1);"
        "r = srdd.scan(random_model('qwen2', layers=2).to(b.device), None, 'npu', level='quick');"
        "print(r.verdict, r.environment['device'])"
    )
    outcome = run_python(code, NPU_SIM_DEVICES="2")
    assert outcome.stdout.split()[-2:] == ["healthy", "npu:1"], outcome.stderr
