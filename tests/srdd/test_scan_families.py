"""Scans of small random networks of each family: healthy ones, and ones with every kind of damage."""

import contextlib
from functools import lru_cache
from itertools import product

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, T5Config, T5ForConditionalGeneration

import srdd
from hal.errors import ModelError, UsageError
from srdd.faults import parse_fault, simulate
from srdd.faults.specification import MODES
from srdd.report import to_json
from tests.conftest import CARRYING, FAMILIES, in_turn, random_model

LAYERS = 3
KINDS = ("dead_zone", "saturation", "bias", "noise", "spike")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@lru_cache(maxsize=1)
def shared(family, dtype):
    """A model that several tests scan; they must leave it as it was."""
    return random_model(family, layers=LAYERS, hidden=32, dtype=dtype)


def quick(model, **options):
    return srdd.scan(model, level="quick", **options)


def named(report):
    return [(finding.layer, finding.kind) for finding in report.findings]


def parameters(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def layer_of(model, index):
    from hal.structure import find_layer_stack

    return find_layer_stack(model).layers[index]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_a_clean_model_is_healthy(self, family, dtype):
        report = quick(shared(family, dtype))
        assert report.verdict == "healthy"
        assert len(report.measurements.layers) == LAYERS
        assert report.measurements.dtype == str(dtype).removeprefix("torch.")
        assert all(score < 1 for score in report.diagnosis.scores)
        assert report.cost.forward_equivalents <= 10


@pytest.mark.parametrize(("family", "kind", "dtype"), in_turn(product(FAMILIES, KINDS), DTYPES), ids=str)
def test_a_dense_fault_is_named_at_every_layer_and_nowhere_else(family, kind, dtype):
    model, results = shared(family, dtype), {}
    for index in range(LAYERS):
        with simulate(model, [parse_fault(f"{kind}@{index}")]) as [fault]:
            results[index] = named(quick(model))
        assert fault.changed > 0
    blind = family == "bert" and kind == "bias"  # post-norm: only replay sees it, as the report's note says
    assert results == {index: [] if blind else [(index, kind)] for index in range(LAYERS)}


def test_post_norm_layers_are_said_to_be_out_of_the_pass_through_probes_reach():
    assert "pass-through does not apply" in quick(shared("bert", torch.float32)).diagnosis.notes[0]


def test_two_faulty_layers_are_both_named():
    model = random_model("qwen2", layers=6, hidden=32)
    with simulate(model, [parse_fault("saturation@1"), parse_fault("noise@4")]):
        assert sorted(named(quick(model))) == [(1, "saturation"), (4, "noise")]


# In bfloat16 the other modes may lie below one rounding.
@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        (torch.bfloat16, "amplified"),
        (torch.bfloat16, "correlated"),
        *((torch.float32, mode) for mode in MODES["non_determinism"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_differences_between_runs_that_are_small_yet_beyond_rounding_are_named(family, dtype, mode):
    model = shared(family, dtype)
    with simulate(model, [parse_fault(f"non_determinism@1:mode={mode}")]):
        assert named(quick(model)) == [(1, "non_determinism")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_one_unit_is_named(kind):
    model = random_model("llama", hidden=32)
    text = f"{kind}@2:units=1,seed=3" + (",magnitude=0.9" if kind in ("dead_zone", "saturation", "spike") else "")
    if kind == "spike":  # so rare that one unit may see none in a whole scan
        text = text.replace("units=1", "units=4")
    with simulate(model, [parse_fault(text)]):
        assert [finding.layer for finding in quick(model).findings] == [2]


# -- damage that our own injector did not make ------------------------------------------------------------


def hooked(layer, change):
    """The caller's own forward hook."""

    def hook(_module, _args, output):
        return change(output) if isinstance(output, torch.Tensor) else (change(output[0]), *output[1:])

    return layer.register_forward_hook(hook).remove


def patched(layer, change):
    """A replaced forward method."""
    forward = layer.forward

    def damaged(*args, **kwargs):
        output = forward(*args, **kwargs)
        return change(output) if isinstance(output, torch.Tensor) else (change(output[0]), *output[1:])

    layer.forward = damaged
    return lambda: layer.__dict__.pop("forward")


def in_units(change, *units):
    def damage(x):
        result = x.clone()
        result[..., list(units)] = change(x)[..., list(units)]
        return result

    return damage


CHANGES = {
    "a scale in every unit": (lambda x: 1.05 * x, "scale"),
    "a flipped sign in one unit": (in_units(lambda x: -x, 5), "sign_flip"),
    "a stuck unit": (in_units(torch.zeros_like, 5), "dead_zone"),
    "an absolute clamp": (lambda x: x.clamp(-2.0, 2.0), "saturation"),
    "an absolute clamp that no value of the data reaches": (lambda x: x.clamp(-500.0, 500.0), "saturation"),
    "small values flushed": (lambda x: x * (x.abs() > 0.5), "dead_zone"),
    "a fresh random number each run": (lambda x: x + 0.5 * torch.randn_like(x), "noise"),
}


@pytest.mark.parametrize("damage", [hooked, patched])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_damage_by_the_caller_is_named(family, name, damage):
    change, kind = CHANGES[name]
    model = shared(family, torch.float32)
    undo = damage(layer_of(model, 1), change)
    try:
        assert named(quick(model)) == [(1, kind)]
    finally:
        undo()
    assert quick(model).verdict == "healthy"


def test_a_constant_is_a_bias_that_only_replay_can_tell_from_a_weight():
    model = random_model("qwen2", layers=2, hidden=32)
    undo = hooked(layer_of(model, 1), in_units(lambda x: x + 3.0, 5))
    assert quick(model).verdict == "healthy"
    assert named(srdd.scan(model)) == [(1, "bias")]
    undo()


def test_what_quick_cannot_see_in_post_norm_layers_replay_sees():
    model = random_model("bert", layers=2, hidden=32)
    with simulate(model, [parse_fault("bias@1")]):
        assert [finding.layer for finding in srdd.scan(model).findings] == [1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("family", CARRYING)
def test_a_weight_that_is_not_finite_is_found_where_it_lies(family, value):
    model = random_model(family, layers=LAYERS, hidden=32)
    weight = max(layer_of(model, 1).parameters(), key=torch.numel)
    weight.data.view(-1)[0] = value
    report = quick(model)
    assert named(report) == [(1, "non_finite")]
    assert report.diagnosis.labels == ("ok", "NON_FINITE_SOURCE", "NON_FINITE_PROP")


@pytest.mark.parametrize("part", ["gate.weight", "experts.gate_up_proj", "experts.down_proj"])
def test_damage_in_a_mixture_is_found_although_its_weights_are_stored_in_pieces(part, tmp_path):
    model = random_model("mixtral", layers=LAYERS, hidden=32)
    model.save_pretrained(tmp_path)
    assert srdd.scan(model, checkpoint=tmp_path).verdict == "healthy"
    with torch.no_grad():
        model.model.layers[1].mlp.get_parameter(part).view(-1)[5] += 0.5
    finding = srdd.scan(model, checkpoint=tmp_path).findings[0]
    assert (finding.layer, finding.kind) == (1, "weight_damage")
    assert f"model.layers.1.mlp.{part}" in finding.suggestion


def test_an_encoder_scanned_alone_is_held_against_its_own_weights(tmp_path):
    config = T5Config(vocab_size=40, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8)
    whole = T5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    assert srdd.scan(whole.get_encoder(), checkpoint=tmp_path).verdict == "healthy"


def test_what_the_checkpoint_lacks_is_said(tmp_path):
    model = random_model("bert", layers=LAYERS, hidden=32)
    model.save_pretrained(tmp_path)
    classifier = BertForSequenceClassification(model.config)
    classifier.bert = model
    report = srdd.scan(classifier.eval(), checkpoint=tmp_path)
    assert report.verdict == "healthy"
    lacking = "classifier.bias and 1 more: not found in the checkpoint, so the model's own is taken"
    assert lacking in report.diagnosis.notes


def test_an_embedding_that_is_not_finite_points_before_the_first_layer():
    model = random_model("qwen2", layers=LAYERS, hidden=32)
    model.model.embed_tokens.weight.data[:] = torch.nan
    [finding] = quick(model).findings
    assert finding.site == "input of model.layers.0"


# -- unusual models, inputs and states: never a crash -----------------------------------------------------


def check_usable(report, path):
    report.save(path)
    assert to_json(srdd.load_report(path)) == to_json(report)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_zero_weights_are_no_crash(family, tmp_path):
    model = random_model(family, layers=LAYERS, hidden=32)
    for parameter in model.parameters():
        parameter.data.zero_()
    check_usable(quick(model), tmp_path / "report.json")


@pytest.mark.parametrize("family", CARRYING)
def test_a_layer_whose_weights_are_all_zero_passes_its_stream_on(family, tmp_path):
    model = random_model(family, layers=LAYERS, hidden=32)
    for parameter in layer_of(model, 1).parameters():
        parameter.data.zero_()
    check_usable(quick(model), tmp_path / "report.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_one_token_is_enough(family, byte_tokenizer, tmp_path):
    model = shared(family, torch.float32)
    report = quick(model, tokenizer=byte_tokenizer, prompts=["a"])
    assert report.measurements.tokens == 1
    assert report.verdict == "healthy"
    with simulate(model, [parse_fault("noise@1")]):
        faulty = quick(model, tokenizer=byte_tokenizer, prompts=["a"])
    assert [finding.layer for finding in faulty.findings] == [1]
    check_usable(faulty, tmp_path / "report.json")


def test_equal_prompts_raise_no_alarm(byte_tokenizer):
    report = quick(shared("qwen2", torch.bfloat16), tokenizer=byte_tokenizer, prompts=["a" * 64] * 8)
    assert report.verdict == "healthy"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_one_layer_is_scanned(family):
    model = random_model(family, layers=1, hidden=32)
    assert quick(model).verdict == "healthy"
    for kind in KINDS:
        with simulate(model, [parse_fault(f"{kind}@0")]):
            expected = [] if family == "bert" and kind == "bias" else [(0, kind)]
            assert named(quick(model)) == expected


def with_dropout():
    model = random_model("gpt2", layers=LAYERS, hidden=32)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    return model


def test_a_model_with_dropout_in_training_is_scanned_without_it_and_left_in_training():
    model = with_dropout().train()
    model.transformer.h[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert quick(model).verdict == "healthy"
    assert {name: module.training for name, module in model.named_modules()} == before


def test_noise_in_a_model_with_dropout_in_training_is_the_noise_that_is_found():
    model = with_dropout().train()
    with simulate(model, [parse_fault("noise@2")]):
        assert named(quick(model)) == [(2, "noise")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scan_leaves_weights_hooks_generators_and_gradients_as_they_were(family):
    model = shared(family, torch.float32)
    before, state = parameters(model), torch.get_rng_state()
    quick(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_model_that_fails_is_left_as_it_was():
    model = random_model("qwen2", layers=LAYERS, hidden=32).train()

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = layer_of(model, 2).register_forward_pre_hook(fail)
    with pytest.raises(ModelError, match=r"Qwen2ForCausalLM fails on token ids .*: RuntimeError: out of memory"):
        quick(model)
    handle.remove()
    assert model.training
    assert not torch.are_deterministic_algorithms_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_two_scans_measure_the_same():
    model = shared("qwen2", torch.bfloat16)
    assert quick(model).measurements == quick(model).measurements


def test_progress_is_told_after_each_layer():
    told = []
    quick(shared("qwen2", torch.float32), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_wrapped_model_is_scanned():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = random_model("gemma2", layers=LAYERS, hidden=32)

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    model = Wrapper()
    assert quick(model).verdict == "healthy"
    assert model.inner.config.use_cache


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": "deep"}, UsageError, "unknown level 'deep'"),
        ({"level": "quick", "probes": ("gain", "kurtois")}, UsageError, "unknown probes kurtois"),
        ({"level": "quick", "probes": ()}, UsageError, "none given"),
        ({"level": "quick", "prompts": []}, UsageError, "no prompts"),
        ({"level": "quick", "prompts": [" "]}, UsageError, "empty prompt"),
        ({"level": "quick", "backend": "tpu"}, UsageError, "unknown backend 'tpu'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        srdd.scan(shared("qwen2", torch.float32), **options)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="no repeated layers"):
        quick(nn.Sequential(nn.Embedding(8, 4)))


@pytest.mark.parametrize("probe", ["instability", "gain", "kurtosis", "pass_through"])
def test_each_probe_can_be_run_alone(probe):
    report = quick(shared("qwen2", torch.float32), probes=(probe,))
    assert report.verdict == "healthy"
    row = report.measurements.layers[0]
    measured = [name for name in ("stability", "gain", "shape", "pass_through") if getattr(row, name) is not None]
    assert measured == [{"instability": "stability", "kurtosis": "shape"}.get(probe, probe)]


def test_an_interrupted_scan_leaves_nothing_behind():
    model = shared("qwen2", torch.float32)

    def interrupt(*_):
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        quick(model, progress=interrupt)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
