"""Odd numbers, odd layers, odd inputs: a finding at the right place or a clear message, never a crash."""

from __future__ import annotations

import io
from itertools import product

import pytest
import torch
import transformers as tf
from rich.console import Console
from torch import nn

import srdd
from hal.errors import ModelError
from hal.structure import find_layer_stack
from srdd.report import to_json
from srdd.report.text import print_report
from tests.conftest import FAMILIES, in_turn, random_model

LEVELS = ("quick", "full")
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "vocab_size": 300,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}
TOP_2 = {"num_experts_per_tok": 2}
EXPERT = {"moe_intermediate_size": 16}


@pytest.fixture
def scan(byte_tokenizer, tmp_path):
    """Scan on a few tokens; the report must survive saving, loading, judging again and printing."""

    def run(model, level="quick", text="Water"):
        report = srdd.scan(model, byte_tokenizer, prompts=[text], level=level)
        report.save(tmp_path / "report.json")
        again = srdd.load_report(tmp_path / "report.json")
        assert to_json(again) == to_json(report)
        assert named(again.rediagnosed()) == named(report)
        print_report(report, Console(file=io.StringIO()))
        return report

    return run


def named(report):
    return [(finding.layer, finding.site, finding.kind) for finding in report.findings]


def make(family="qwen2", **changes):
    return random_model(family, **{"layers": 3, "hidden": 32, **changes})


def layer(model, index):
    return find_layer_stack(model).layers[index]


def returns(module, change):
    """Change what the module returns."""

    def hook(_module, _args, output):
        return change(output) if isinstance(output, torch.Tensor) else (change(output[0]), *output[1:])

    module.register_forward_hook(hook)


def put(value):
    """Set one element."""

    def change(x):
        result = x.clone()
        result.view(-1)[5] = value
        return result

    return change


# -- NaN and infinity -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "family", "level"),
    in_turn(product([torch.nan, -torch.inf], ["qwen2", "mixtral", "bert"]), LEVELS),
    ids=str,
)
def test_an_activation_that_is_not_finite_is_found_where_it_appears(scan, family, value, level):
    model = make(family)
    returns(layer(model, 1), put(value))
    report = scan(model, level)
    assert named(report) == [(1, find_layer_stack(model).site(1), "non_finite")]
    assert report.diagnosis.labels[2] == "NON_FINITE_PROP"


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize(
    ("family", "site"), [("qwen2", "mlp.down_proj"), ("qwen2", "self_attn.o_proj"), ("mixtral", "mlp")]
)
def test_the_module_that_made_it_is_named(scan, family, site, value):
    model = make(family)
    returns(layer(model, 1).get_submodule(site), put(value))
    assert named(scan(model, "full")) == [(1, f"model.layers.1.{site}", "non_finite")]


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("damage", ["an activation", "a weight"])
def test_what_attention_makes_zeros_of_is_found_in_its_layer(scan, value, damage):
    """torch's fused attention on the host returns zero for a row of NaN scores: the layer's output is finite."""
    model = make()
    projection = layer(model, 1).self_attn.q_proj
    if damage == "an activation":
        returns(projection, put(value))
    else:
        projection.weight.data.view(-1)[3] = value
    [(number, site, kind)] = named(scan(model, "full"))
    assert (number, kind) == (1, "non_finite")
    # Without a checkpoint a weight is taken for right, and where it is infinite the layer alone shows it.
    assert site == "model.layers.1.self_attn.q_proj" or (damage == "a weight" and value == torch.inf)


@pytest.mark.parametrize("level", LEVELS)
def test_values_spoilt_on_their_way_to_a_layer_are_found_there(scan, level):
    model = make()
    layer(model, 1).register_forward_pre_hook(lambda _layer, args: (put(torch.nan)(args[0]), *args[1:]))
    assert named(scan(model, level)) == [(1, "input of model.layers.1", "non_finite")]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_weights_that_are_not_finite_are_found_in_their_layer(scan, value, level):
    for name in ("input_layernorm", "mlp.up_proj", "self_attn.o_proj"):
        model = make()
        layer(model, 1).get_submodule(name).weight.data.view(-1)[3] = value
        assert [(number, kind) for number, _, kind in named(scan(model, level))] == [(1, "non_finite")], name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_an_embedding_that_is_not_finite_points_before_the_first_layer(scan, value, level):
    model = make()
    model.model.embed_tokens.weight.data[:] = value
    assert named(scan(model, level)) == [(0, "input of model.layers.0", "non_finite")]


# -- the ends of the dtypes' ranges -----------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_float16_overflow_is_found_at_the_layer_that_overflows(scan, family, level):
    model = make(family, dtype=torch.float16)
    for weight in layer(model, 1).parameters():
        if weight.dim() > 1:
            weight.data.mul_(3000)
    assert [(number, kind) for number, _, kind in named(scan(model, level))] == [(1, "non_finite")]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("factor", [1e30, 1e-42])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_streams_at_the_ends_of_the_range_are_no_crash(scan, dtype, factor, level):
    """Their squares overflow or vanish in the normalisation, which is a finding or not as the device does it."""
    model = make(dtype=dtype, layers=2)
    model.model.embed_tokens.weight.data.mul_(factor)
    assert len(scan(model, level).measurements.layers) == 2


def test_a_router_that_divides_by_scores_which_underflow_is_healthy():
    """Amplified, all scores of a row may be exp(-200): nothing in float32, of which a healthy kernel makes NaN."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = tf.MiniMaxM2Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, initializer_range=1.0, **experts, **heads, **tokens
    )
    torch.manual_seed(0)
    model = tf.MiniMaxM2ForCausalLM(config).eval()
    with torch.no_grad():
        _, scores, _ = model.model.layers[0].mlp.gate(64 * torch.randn(256, 32), torch.zeros(4))
    assert scores.isnan().any()
    assert srdd.scan(model).verdict == "healthy"


@pytest.mark.parametrize("level", LEVELS)
def test_a_large_stream_within_the_range_raises_no_alarm(scan, level):
    model = make(dtype=torch.float16, layers=2)
    model.model.embed_tokens.weight.data.mul_(100)
    assert scan(model, level).verdict == "healthy"


# -- layers that do nothing, or always the same -----------------------------------------------------------


@pytest.mark.parametrize(("family", "level"), in_turn(FAMILIES, LEVELS))
def test_all_zero_weights_are_no_fault_of_the_device(scan, family, level):
    model = make(family, layers=2)
    for weight in model.parameters():
        weight.data.zero_()
    assert scan(model, level).verdict == "healthy"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_one_layer_of_zero_weights_is_no_fault_of_the_device(scan, family, level):
    model = make(family)
    for weight in layer(model, 1).parameters():
        weight.data.zero_()
    assert scan(model, level).verdict == "healthy"


@pytest.mark.parametrize("level", LEVELS)
def test_a_post_norm_layer_of_zero_weights_returns_zeros_and_is_accused_of_it(scan, level):
    model = make("bert")
    for weight in layer(model, 1).parameters():
        weight.data.zero_()
    assert named(scan(model, level)) == [(1, "encoder.layer.1", "dead_zone")]


@pytest.mark.parametrize(
    ("constant", "family", "level"), in_turn(product([0.0, 3.0], ["qwen2", "llama", "gpt2"]), LEVELS)
)
def test_a_layer_that_always_returns_the_same_is_accused_alone(scan, family, constant, level):
    model = make(family)
    returns(layer(model, 1), lambda x: torch.full_like(x, constant))
    assert [number for number, _, _ in named(scan(model, level))] == [1]


@pytest.mark.parametrize("family", ["qwen2", "bert"])
def test_a_module_that_always_returns_the_same_is_named(scan, family):
    site = {"qwen2": "mlp", "bert": "intermediate"}[family]
    model = make(family)
    returns(layer(model, 1).get_submodule(site), torch.ones_like)
    assert [place for _, place, _ in named(scan(model, "full"))] == [f"{find_layer_stack(model).site(1)}.{site}"]


# -- mixtures of experts ----------------------------------------------------------------------------------

MIXTURES = {
    "mixtral": lambda count: tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, **TOP_2, num_local_experts=count)),
    "qwen2_moe": lambda count: tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(**SIZES, **TOP_2, **EXPERT, num_experts=count, shared_expert_intermediate_size=16)
    ),
    "qwen3_moe": lambda count: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(**SIZES, **TOP_2, **EXPERT, num_experts=count, head_dim=8)
    ),
}


def mixture(name, count=8):
    torch.manual_seed(7)
    return MIXTURES[name](count).eval()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_without_a_token_are_no_fault(scan, name, level):
    assert scan(mixture(name, 64), level, text="a").verdict == "healthy", "one token and 64 experts"
    model = mixture(name)
    for index in range(2):
        router = layer(model, index).mlp.gate.weight
        router.data[2:] = -router.data[:1].abs()
    assert scan(model, level).verdict == "healthy", "all tokens to few experts"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", MIXTURES)
def test_a_router_that_cannot_choose_is_no_fault_and_a_broken_one_is(scan, name, level):
    model = mixture(name)
    layer(model, 1).mlp.gate.weight.data.zero_()
    assert scan(model, level).verdict == "healthy"
    layer(model, 1).mlp.gate.weight.data[:] = torch.nan
    assert [(number, kind) for number, _, kind in named(scan(model, level))] == [(1, "non_finite")]


@pytest.mark.parametrize("name", MIXTURES)
def test_a_fault_in_the_experts_is_found_beside_empty_ones(scan, name):
    model = mixture(name, 64)
    returns(layer(model, 1).mlp.experts, lambda x: x + 0.5)
    [(number, site, kind)] = named(scan(model, "full", text="ab"))
    assert (number, site, kind) == (1, "model.layers.1.mlp.experts", "bias")


# -- layers that share ------------------------------------------------------------------------------------


def sharing(what):
    model = make(layers=4)
    layers = model.model.layers
    if what == "a module":
        layers[2].mlp = layers[1].mlp
    elif what == "a weight":
        layers[2].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    else:
        layers[2] = layers[1]
    return model


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("what", ["a module", "a weight", "everything"])
def test_layers_that_share_are_scanned(scan, what, level):
    assert scan(sharing(what), level).verdict == "healthy"


def test_damage_to_what_is_shared_is_found_in_each_user(scan):
    model = sharing("a module")
    returns(layer(model, 1).mlp, lambda x: x + 0.5)
    assert {number for number, _, _ in named(scan(model, "full"))} == {1, 2}


# -- inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_one_token_is_replayed(scan, family):
    report = scan(make(family, layers=2), "full", text="a")
    assert report.measurements.tokens == 1
    assert report.verdict == "healthy"


@pytest.mark.parametrize(
    ("text", "tokens"), [("ab", 2), ("x" * 100_000, 256), ("Water boils. " * 20_000, 256)], ids=["2", "equal", "long"]
)
def test_prompts_of_any_length_are_cut_to_what_is_measured(scan, text, tokens):
    report = scan(make(), text=text)
    assert report.measurements.tokens == tokens
    assert report.verdict == "healthy"


# -- models that are not a stack that ids go through ------------------------------------------------------


def test_an_encoder_with_a_decoder_is_refused_and_its_encoder_is_scanned(scan):
    config = tf.T5Config(num_layers=3, d_model=32, d_kv=8, num_heads=4, d_ff=64, vocab_size=300)
    model = tf.T5ForConditionalGeneration(config).eval()
    with pytest.raises(ModelError, match=r"an encoder with a decoder, .* scan its encoder, model.get_encoder\(\)"):
        scan(model)
    assert scan(model.get_encoder()).verdict == "healthy"


class Block(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return x + self.inner(self.norm(x))


class Plain(nn.Module):
    """No transformers model: no configuration, no attention."""

    def __init__(self, runs=True):
        super().__init__()
        self.embed = nn.Embedding(300, 16)
        self.layers = nn.ModuleList([Block(), Block(), Block()])
        self.runs = runs

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.layers if self.runs else ():
            x = block(x)
        return x


@pytest.mark.parametrize("level", LEVELS)
def test_a_plain_torch_model_is_scanned(scan, level):
    model = Plain().eval()
    assert scan(model, level).verdict == "healthy"
    returns(model.layers[1], lambda x: x.clamp(-1, 1))
    assert [(number, kind) for number, _, kind in named(scan(model, level))] == [(1, "saturation")]


def test_layers_that_never_run_are_said_to(scan):
    with pytest.raises(ModelError, match="no layer of layers ran during the model's forward pass: nothing to scan"):
        scan(Plain(runs=False))


@pytest.mark.parametrize("site", ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_inside_a_layer_are_found_where_they_arise(make_model, site, value):
    model = make_model("llama", layers=2)
    target = find_layer_stack(model).layers[1].get_submodule(site)

    def spoil(_module, _args, output):
        output[:, 5, 3] = value

    target.register_forward_hook(spoil)
    (finding,) = srdd.scan(model).findings
    assert (finding.layer, finding.site, finding.kind) == (1, f"model.layers.1.{site}", "non_finite")
