"""An attention is also asked for sequences of different lengths, for which it needs a mask."""

import pytest
import torch
from torch.nn import functional

import srdd
from hal.structure import find_layer_stack
from srdd.replay.capture import record
from srdd.replay.masked import with_tokens_masked
from tests.conftest import FAMILIES

SHIPPED = functional.scaled_dot_product_attention
CASES = [
    (family, kernel)
    for family in FAMILIES
    for kernel in ("sdpa", "eager")
    if (family, kernel) != ("gemma2", "sdpa")  # which caps its scores, and refuses it
]


def masked_calls(model):
    """The calls of the first layer's modules that take another mask, by the modules' names."""
    layer = find_layer_stack(model).layers[0]
    model.config.use_cache = False
    with torch.no_grad(), record(layer) as trees:
        model(torch.arange(2 * 8).reshape(2, 8))
    altered = {call.name: with_tokens_masked(layer, call) for call in trees[0].walk()}
    return {name: call for name, call in altered.items() if call is not None}


@pytest.mark.parametrize(("family", "kernel"), CASES)
def test_the_first_tokens_of_every_sequence_but_the_first_are_masked(make_model, family, kernel):
    model = make_model(family, layers=1)
    model.set_attn_implementation(kernel)
    found = masked_calls(model)
    ((_, call),) = found.items()
    mask = call.kwargs["attention_mask"]
    seen = (mask if mask.dtype == torch.bool else mask == 0).expand(2, 1, 8, 8)
    causal = family != "bert"
    assert torch.equal(seen[0, 0], torch.ones(8, 8).tril().bool() if causal else torch.ones(8, 8).bool())
    assert not seen[1, 0, 2:, :2].any()
    assert torch.equal(seen[1, 0, 2:, 2:], seen[0, 0, 2:, 2:])
    assert seen[1, 0].any(-1).all()  # no query is left without a key
    assert all(child.stub for child in call.children)


def test_a_single_sequence_is_masked_too(make_model):
    model = make_model("llama", layers=1)
    layer = find_layer_stack(model).layers[0]
    model.config.use_cache = False
    with torch.no_grad(), record(layer) as trees:
        model(torch.arange(8).reshape(1, 8))
    call = next(filter(None, (with_tokens_masked(layer, call) for call in trees[0].walk())))
    assert not call.kwargs["attention_mask"][0, 0, 2:, :2].any()


def test_flash_attention_is_told_which_tokens_are_there(make_model):
    model = make_model("llama", layers=1)
    layer = find_layer_stack(model).layers[0]
    model.config.use_cache = False
    with torch.no_grad(), record(layer) as trees:
        model(torch.arange(2 * 8).reshape(2, 8))
    call = next(call for call in trees[0].walk() if call.name == "self_attn")
    model.config._attn_implementation = "flash_attention_2"  # which does not run on the host
    call.operators.clear()  # a fused kernel is none that is recorded
    mask = with_tokens_masked(layer, call).kwargs["attention_mask"]
    assert mask.tolist() == [[1] * 8, [0, 0, *[1] * 6]]


@pytest.mark.parametrize(("family", "kernel"), CASES)
def test_sound_attention_is_healthy(make_model, family, kernel):
    model = make_model(family, layers=1, dtype=torch.bfloat16)
    model.set_attn_implementation(kernel)
    report = srdd.scan(model)
    assert report.verdict == "healthy"
    assert not report.measurements.notes


def ignored(query, key, value, attn_mask=None, **options):
    return SHIPPED(query, key, value, **{**options, "is_causal": query.shape[-2] > 1})


def turned_over(query, key, value, attn_mask=None, **options):
    mask = None if attn_mask is None else ~attn_mask | torch.eye(attn_mask.shape[-1], dtype=torch.bool)
    return SHIPPED(query, key, value, attn_mask=mask, **options)


def of_the_first_sequence(query, key, value, attn_mask=None, **options):
    return SHIPPED(query, key, value, attn_mask=None if attn_mask is None else attn_mask[:1], **options)


@pytest.mark.parametrize("wrong", [ignored, turned_over, of_the_first_sequence])
def test_a_kernel_that_is_wrong_about_its_mask_is_found(make_model, monkeypatch, wrong):
    monkeypatch.setattr(functional, "scaled_dot_product_attention", wrong)
    report = srdd.scan(make_model("llama", layers=2))
    assert {finding.site for finding in report.findings} == {f"model.layers.{i}.self_attn" for i in range(2)}
    assert "only where sequences are of different lengths" in report.findings[0].suggestion
