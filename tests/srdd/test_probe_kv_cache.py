"""The cache probe on real decoder layers."""

import pytest
from transformers import OpenAIGPTConfig, OpenAIGPTModel

import srdd
from srdd.faults import Fault, simulate

CACHED = ["qwen2", "llama", "mixtral", "gpt2"]  # GPT-2 hands its cache on by position


def found(report):
    return [(finding.layer, finding.site.rpartition(".")[2], finding.kind) for finding in report.findings]


@pytest.mark.parametrize("family", CACHED)
def test_a_sound_cache_returns_what_was_stored(make_model, family):
    model = make_model(family)
    report = srdd.scan(model, level="quick", probes=["kv_cache"])
    assert report.verdict == "healthy"
    assert all(row.kv_cache is not None and row.kv_cache.repeats for row in report.measurements.layers)
    assert report.cost.forward_equivalents < 2


@pytest.mark.parametrize("kind", ["bias", "dead_zone", "saturation", "noise", "sign_flip"])
@pytest.mark.parametrize("family", CACHED)
def test_a_damaged_cache_is_named_with_the_kind_of_damage(make_model, family, kind):
    model = make_model(family)
    with simulate(model, [Fault(kind, 2, site="kv_cache", sparsity=0.5)]):
        report = srdd.scan(model, level="quick", probes=["kv_cache"])
    assert found(report) == [(2, "kv_cache", kind)]


def test_a_layer_that_takes_no_cache_is_not_judged():
    model = OpenAIGPTModel(OpenAIGPTConfig(vocab_size=40, n_embd=32, n_head=4, n_layer=2, n_positions=128)).eval()
    report = srdd.scan(model, level="quick", probes=["kv_cache"])
    assert all(row.kv_cache is None for row in report.measurements.layers)


@pytest.mark.parametrize("window", [2, 5])
def test_a_cache_that_keeps_few_tokens_is_asked_for_those(make_model, window):
    model = make_model("mistral", layers=2)
    model.config.sliding_window = window
    report = srdd.scan(model, level="quick", probes=["kv_cache"])
    assert report.verdict == "healthy"
    assert not report.measurements.notes
    assert all(row.kv_cache is not None and row.kv_cache.repeats for row in report.measurements.layers)
    with simulate(model, [Fault("sign_flip", 1, site="kv_cache")]):
        assert found(srdd.scan(model, level="quick", probes=["kv_cache"])) == [(1, "kv_cache", "sign_flip")]


def test_scanning_leaves_no_trace_in_the_model(make_model):
    model = make_model("qwen2")
    srdd.scan(model, level="quick", probes=["kv_cache"])
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
