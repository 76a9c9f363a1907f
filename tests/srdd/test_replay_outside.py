"""What lies outside the layers is replayed too: embeddings, position tables, last norm, head, and the code between."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

import srdd
from hal.models import load_model
from hal.registry import get_backend
from hal.structure import find_layer_stack
from srdd.diagnose import OUTSIDE, place
from srdd.faults import Fault, simulate
from srdd.replay import outside
from srdd.report import from_json, to_json
from tests.conftest import FAMILIES, in_turn, random_model

LAYERS = 2
LAST = LAYERS - 1
SITES = {
    "qwen2": [(0, "model.embed_tokens"), (0, "model.rotary_emb"), (LAST, "model.norm"), (LAST, "lm_head")],
    "gemma2": [(0, "model.embed_tokens"), (LAST, "model.norm"), (LAST, "lm_head")],
    "gpt2": [(0, "transformer.wte"), (0, "transformer.wpe"), (LAST, "transformer.ln_f"), (LAST, "lm_head")],
    "bert": [(0, "embeddings.word_embeddings"), (0, "embeddings.LayerNorm"), (LAST, "pooler.dense")],
}
PLACES = [(family, *entry) for family, entries in SITES.items() for entry in entries]


def small_to_zero(y):
    return torch.where(y.abs() < 0.3 * y.abs().max(), 0, y)


def one_unit_off(y):
    return torch.cat([y[..., :1] + 0.5 * y.std(), y[..., 1:]], dim=-1)


def clamped(y):
    return y.clamp(-0.5 * y.abs().max(), 0.5 * y.abs().max())


def noisy(y):
    return y + 0.3 * y.std() * torch.randn_like(y)


KINDS = {"dead_zone": small_to_zero, "bias": one_unit_off, "saturation": clamped, "noise": noisy}


def changing(change):
    """A hook that changes the floating-point tensors that a module returns."""

    def hook(_module, _args, output):
        return tuple(map(change, output)) if isinstance(output, tuple) else change(output)

    return hook


def found(report):
    return [(finding.layer, finding.site) for finding in report.findings]


def outside_sites(report):
    return {site.site for row in report.measurements.outside for site in row.replay}


@pytest.fixture(scope="module")
def models():
    return {family: random_model(family, layers=LAYERS, hidden=32) for family in SITES}


@pytest.mark.parametrize(
    ("family", "dtype"), in_turn(FAMILIES, [torch.float32, torch.bfloat16, torch.float16]), ids=str
)
def test_a_clean_model_is_replayed_whole_and_is_healthy(family, dtype):
    report = srdd.scan(random_model(family, layers=LAYERS, hidden=32, dtype=dtype))
    assert report.verdict == "healthy"
    assert not [note for note in report.diagnosis.notes if "not replayed" in note]
    assert {site for _, site in SITES.get(family, ())} <= outside_sites(report)


@pytest.mark.parametrize(("family", "layer", "site", "kind"), in_turn(PLACES, tuple(KINDS)))
def test_a_fault_outside_the_layers_is_named_and_no_layer_is_accused(models, family, layer, site, kind):
    model = models[family]
    handle = model.get_submodule(site).register_forward_hook(changing(KINDS[kind]))
    try:
        report = srdd.scan(model)
    finally:
        handle.remove()
    assert found(report) == [(layer, site)]
    assert report.diagnosis.labels == ("ok",) * LAYERS
    assert place(report.findings[0], report.measurements.layers) == OUTSIDE
    # Which kind, where one site shows it whole; a table of two rows that one clamp cuts may look like others.
    if site in ("lm_head", "model.norm"):
        assert report.findings[0].kind == kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("family", "site"), [("qwen2", "model.embed_tokens"), ("gpt2", "transformer.wpe")])
def test_a_table_is_copied_to_the_last_bit(family, site, dtype):
    model = random_model(family, layers=LAYERS, hidden=32, dtype=dtype)
    for kind, options in (("rounding", {}), ("rounding", {"units": 1}), ("bit_flip", {"bits": "0"})):
        with simulate(model, [Fault(kind, layer=None, site=site, seed=1, **options)]):
            (finding,) = srdd.scan(model).findings
        assert (finding.layer, finding.site) == (0, site)
        if kind == "rounding" and site == "model.embed_tokens":  # a table of places is too short to tell
            assert finding.kind == kind


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rows_that_loading_rounded_to_another_dtype_are_no_damage(tmp_path, dtype):
    random_model("llama", layers=LAYERS, hidden=32).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert srdd.scan(model, checkpoint=tmp_path).verdict == "healthy"


def test_a_wrong_epsilon_of_the_last_norm_is_named_with_its_value(models):
    norm = models["qwen2"].model.norm
    right, norm.variance_epsilon = norm.variance_epsilon, 1e-2
    (finding,) = srdd.scan(models["qwen2"]).findings
    norm.variance_epsilon = right
    assert (finding.site, finding.kind) == ("model.norm", "wrong_constant")
    assert "acts as 0.01" in finding.suggestion


def test_damaged_frequencies_of_the_positions_are_found(models):
    frequencies = models["qwen2"].model.rotary_emb.inv_freq
    right = frequencies[3].item()
    frequencies[3] *= 1.5
    assert found(srdd.scan(models["qwen2"])) == [(0, "model.rotary_emb")]
    frequencies[3] = right


def test_frequencies_that_a_cast_of_the_model_rounded_are_not_damage():
    model = random_model("llama", layers=LAYERS, hidden=32).to(torch.bfloat16)
    assert srdd.scan(model).verdict == "healthy"
    assert srdd.scan(model.float()).verdict == "healthy"


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("in_place", [False, True])
def test_what_alters_the_stream_between_layers_is_named(index, in_place):
    model = random_model("llama", layers=LAYERS, hidden=32)

    def alter(_layer, args):
        stream = args[0] if in_place else args[0].clone()
        stream[..., 7] = 0
        return (stream, *args[1:])

    find_layer_stack(model).layers[index].register_forward_pre_hook(alter)
    finding = srdd.scan(model).findings[0]
    assert (finding.layer, finding.site) == (index, f"input of model.layers.{index}")
    assert "look for what alters the input" in finding.suggestion


def test_what_alters_the_result_of_the_whole_model_is_named(models):
    def alter(_model, _args, output):
        output["logits"] = output.logits.clamp(max=0)
        return output

    handle = models["qwen2"].register_forward_hook(alter)
    report = srdd.scan(models["qwen2"])
    handle.remove()
    assert found(report) == [(LAST, "output of Qwen2ForCausalLM")]


def test_a_head_is_compared_in_pieces_where_it_is_large(models, monkeypatch):
    monkeypatch.setattr(outside, "ELEMENTS", 2**12)
    assert srdd.scan(models["qwen2"]).verdict == "healthy"
    handle = models["qwen2"].lm_head.register_forward_hook(changing(one_unit_off))
    assert found(srdd.scan(models["qwen2"])) == [(LAST, "lm_head")]
    handle.remove()


def test_damage_of_a_weight_that_the_head_shares_with_the_embeddings_is_named_at_both(make_model, tmp_path):
    make_model("gpt2", layers=LAYERS).save_pretrained(tmp_path)
    model = load_model(tmp_path, get_backend("cpu-reference")).model
    assert srdd.scan(model, checkpoint=tmp_path).verdict == "healthy"
    with torch.no_grad():
        model.transformer.wte.weight[9, 4] = 3.0
    findings = srdd.scan(model, checkpoint=tmp_path).findings
    assert {(finding.site, finding.kind) for finding in findings} == {
        ("transformer.wte", "weight_damage"),
        ("lm_head", "weight_damage"),
    }


def test_nan_from_the_embeddings_is_named_there_once(models):
    handle = models["qwen2"].model.embed_tokens.register_forward_hook(changing(lambda y: y * torch.nan))
    report = srdd.scan(models["qwen2"])
    handle.remove()
    assert [(finding.site, finding.kind) for finding in report.findings] == [("model.embed_tokens", "non_finite")]


def test_it_is_kept_in_a_report_and_old_reports_are_read(models):
    report = srdd.scan(models["gpt2"])
    document = to_json(report)
    assert repr(from_json(document).measurements.outside) == repr(report.measurements.outside)
    del document["outside"]
    assert from_json(document).measurements.outside == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_code_that_reads_the_weights_of_its_parts_is_replayed_with_them(dtype):
    config = AutoConfig.for_model(
        "mobilebert", vocab_size=300, hidden_size=32, embedding_size=16, num_hidden_layers=LAYERS, pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config).to(dtype).eval()
    healthy = srdd.scan(model)
    assert healthy.findings == ()
    assert not [note for note in healthy.diagnosis.notes if "not replayed" in note]
    assert "cls.predictions" in outside_sites(healthy)
    model.cls.predictions.register_forward_hook(changing(one_unit_off))
    assert found(srdd.scan(model)) == [(LAST, "cls.predictions")]


def test_level_quick_replays_nothing(models):
    assert srdd.scan(models["qwen2"], level="quick").measurements.outside == ()
