"""Faults that show only where one token is computed alone, as kernels for few rows have them."""

import pytest
import torch
from transformers.models.llama import modeling_llama

import srdd
from srdd.faults import Fault, simulate
from srdd.measurements import ALONE
from srdd.replay.host import DECODING
from tests.conftest import FAMILIES, in_turn

DECODERS = [family for family in FAMILIES if family != "bert"]


def found(report):
    return [(finding.site, finding.operator, finding.kind) for finding in report.findings]


@pytest.mark.parametrize("family", DECODERS)
def test_a_sound_layer_is_run_on_one_token_and_is_healthy(make_model, family):
    model = make_model(family, layers=2, dtype=torch.bfloat16)
    with simulate(model, [Fault("scale", 1, factor=1.0000001, tokens=1)]) as active:  # which bfloat16 does not show
        report = srdd.scan(model)
    assert active[0].acted == DECODING
    assert report.verdict == "healthy"
    assert not report.measurements.notes


@pytest.mark.parametrize(
    ("site", "operator", "kind"),
    in_turn(
        [("", ""), ("self_attn", ""), ("mlp.down_proj", ""), ("input_layernorm", ""), ("", "attention")],
        ["bias", "scale", "bit_flip"],
    ),
)
def test_a_fault_of_one_token_alone_is_named_with_its_kind(make_model, site, operator, kind):
    model = make_model("llama", layers=3)
    with simulate(model, [Fault(kind, 1, site=site, operator=operator, tokens=1)]) as active:
        report = srdd.scan(model)
    assert active[0].changed
    (place,) = found(report)
    expected = ".".join(filter(None, ("model.layers.1", site or ("self_attn" if operator else ""))))
    assert place == (expected, operator, kind)
    assert "only where one token is computed alone" in report.findings[0].suggestion


@pytest.mark.parametrize("site", ["model.embed_tokens", "model.norm", "lm_head"])
def test_outside_the_layers_too(make_model, site):
    model = make_model("llama", layers=2)
    with simulate(model, [Fault("bias", None, site=site, tokens=1)]):
        report = srdd.scan(model)
    assert [finding.site for finding in report.findings] == [site]
    assert "only where one token is computed alone" in report.findings[0].suggestion


def test_a_fault_that_other_inputs_show_is_judged_by_those(make_model):
    model = make_model("llama", layers=2)
    with simulate(model, [Fault("bias", 1, site="mlp")]):
        report = srdd.scan(model)
    (layer,) = [row for row in report.measurements.layers if row.index == 1]
    assert ALONE not in {site.excitation for site in layer.replay}
    assert "one token" not in report.findings[0].suggestion


def test_a_key_that_is_stored_at_the_wrong_position_is_found(make_model, monkeypatch):
    shipped = modeling_llama.apply_rotary_pos_emb

    def lagging(q, k, cos, sin, *args, **kwargs):
        rotated = shipped(q, k, cos, sin, *args, **kwargs)
        return (rotated[0], k) if q.shape[-2] == 1 else rotated

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lagging)
    report = srdd.scan(make_model("llama", layers=2))
    assert {finding.site for finding in report.findings} == {f"model.layers.{i}.self_attn" for i in range(2)}


def test_an_attention_that_forgets_the_first_token_is_found(make_model, monkeypatch):
    shipped = torch.nn.functional.scaled_dot_product_attention

    def forgetful(query, key, value, *args, **kwargs):
        if query.shape[-2] == 1 and key.shape[-2] > 1:
            key, value = key[..., 1:, :], value[..., 1:, :]
        return shipped(query, key, value, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", forgetful)
    report = srdd.scan(make_model("llama", layers=2))
    assert {finding.site for finding in report.findings} == {f"model.layers.{i}.self_attn" for i in range(2)}


def test_noise_on_one_token_is_told_from_a_fault_that_is_always_the_same(make_model):
    model = make_model("llama", layers=2)
    with simulate(model, [Fault("noise", 1, site="mlp.up_proj", tokens=1)]):
        report = srdd.scan(model)
    assert found(report) == [("model.layers.1.mlp.up_proj", "", "noise")]


def test_a_window_limits_what_is_kept(make_model):
    model = make_model("mistral", layers=2)
    model.config.sliding_window = 3
    report = srdd.scan(model)
    assert (report.verdict, report.measurements.notes) == ("healthy", ())
    with simulate(model, [Fault("scale", 1, site="self_attn", tokens=1)]):
        assert found(srdd.scan(model)) == [("model.layers.1.self_attn", "", "scale")]
