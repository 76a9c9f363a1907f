"""Fused kernels are put into transformers by replacing its code, in a class, a module or the registry of attention
functions. The copy on the host runs the code of transformers' files all the same, so a wrong kernel shows, and a right
one does not.
"""

from __future__ import annotations

import math
from itertools import cycle

import pytest
import torch
import transformers as tf
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import SiLUActivation
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.qwen2 import modeling_qwen2

import srdd

WRONG = 1.05
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}


def sites(report):
    return {finding.site for finding in report.findings}


# -- functions, methods and classes ------------------------------------------------------------------------


def fused_mlp(factor):
    def forward(self, x):
        gate, up = functional.linear(x, torch.cat([self.gate_proj.weight, self.up_proj.weight])).chunk(2, -1)
        return functional.linear(factor * functional.silu(gate) * up, self.down_proj.weight)

    return modeling_qwen2.Qwen2MLP, "forward", forward


def fused_attention(factor):
    def forward(self, hidden_states, position_embeddings, attention_mask=None, past_key_values=None, **_):
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weight, bias = (torch.cat([getattr(part, name) for part in projections]) for name in ("weight", "bias"))
        parts = functional.linear(hidden_states, weight, bias).split([part.out_features for part in projections], -1)
        rows = hidden_states.shape[:2]
        query, key, value = (part.view(*rows, -1, self.head_dim).transpose(1, 2) for part in parts)
        query, key = modeling_qwen2.apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        output = functional.scaled_dot_product_attention(
            query, key, value, attention_mask, scale=factor * self.scaling, enable_gqa=True,
            is_causal=attention_mask is None and rows[1] > 1,
        )  # fmt: skip
        return functional.linear(output.transpose(1, 2).flatten(2), self.o_proj.weight), None

    return modeling_qwen2.Qwen2Attention, "forward", forward


def fused_norm_class(factor):
    class FusedNorm(nn.Module):
        def __init__(self, width, eps=1e-6):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

        def forward(self, x):
            return factor * functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)

    return modeling_qwen2, "Qwen2RMSNorm", FusedNorm


def fused_rotation(factor):
    own = modeling_qwen2.apply_rotary_pos_emb

    def rotate(query, key, cos, sin):
        query, key = own(query, key, cos, sin)
        return factor * query, key

    return modeling_qwen2, "apply_rotary_pos_emb", rotate


def fused_layer(factor):
    own = modeling_qwen2.Qwen2DecoderLayer.forward
    return (
        modeling_qwen2.Qwen2DecoderLayer,
        "forward",
        lambda self, *args, **kwargs: factor * own(self, *args, **kwargs),
    )


def outside_the_layers(factor):
    own = modeling_qwen2.Qwen2Model.forward

    def forward(self, *args, **kwargs):
        output = own(self, *args, **kwargs)
        output.last_hidden_state = factor * output.last_hidden_state
        return output

    return modeling_qwen2.Qwen2Model, "forward", forward


LAYERS = ("model.layers.0", "model.layers.1")
NORMS = {"input_layernorm", "post_attention_layernorm", "norm"}
REPLACED = {
    fused_mlp: {f"{layer}.mlp" for layer in LAYERS},
    fused_attention: {f"{layer}.self_attn" for layer in LAYERS},
    fused_norm_class: None,  # the first of each layer's norms, and the last
    fused_rotation: {f"{layer}.self_attn" for layer in LAYERS},
    fused_layer: set(LAYERS),
    outside_the_layers: {"model"},
}


@pytest.mark.parametrize("replacement", REPLACED, ids=lambda function: function.__name__)
def test_wrong_code_in_transformers_place_is_found_and_right_code_is_not_accused(monkeypatch, make_model, replacement):
    with monkeypatch.context() as patch:
        patch.setattr(*replacement(1.0))
        report = srdd.scan(make_model("qwen2", layers=2))
    assert report.verdict == "healthy", report.findings
    name = report.measurements.notes[0]
    assert name.startswith("the host ran transformers' own code in place of ")
    monkeypatch.setattr(*replacement(WRONG))
    report = srdd.scan(make_model("qwen2", layers=2))
    assert report.measurements.notes[0] == name
    assert sites(report) == REPLACED[replacement] or (
        REPLACED[replacement] is None and {site.rpartition(".")[2] for site in sites(report)} <= NORMS
    )
    assert report.verdict == "faulty"


def test_code_that_was_replaced_reaches_a_model_of_the_user_s_own_class(monkeypatch):
    class Mine(tf.Qwen2ForCausalLM):
        """A subclass, whose file is not one of transformers'."""

    torch.manual_seed(0)
    model = Mine(tf.Qwen2Config(**GROUPED)).eval()
    monkeypatch.setattr(*fused_mlp(WRONG))
    assert sites(srdd.scan(model)) == {f"{layer}.mlp" for layer in LAYERS}


# -- torch's own functions ---------------------------------------------------------------------------------


class WrongFunction(TorchFunctionMode):
    """Around a scan, as a device's own code lies around a program."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return WRONG * result if func is functional.silu else result


class WrongKernel(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return WRONG * result if func._schema.name == "aten::silu" else result


def scaled(function, factor):
    return lambda *args, **kwargs: factor * function(*args, **kwargs)


TORCHS = {
    "torch.nn.functional.silu": (functional, "silu", {"mlp.act_fn"}),
    "torch.nn.functional.scaled_dot_product_attention": (functional, "scaled_dot_product_attention", {"self_attn"}),
    "torch.rsqrt": (torch, "rsqrt", NORMS),
    "torch.Tensor.pow": (torch.Tensor, "pow", NORMS),
    "torch.nn.Linear.forward": (nn.Linear, "forward", {"proj", "lm_head"}),
}


@pytest.mark.parametrize("name", TORCHS)
def test_a_wrong_function_in_torch_s_place_is_found_and_a_right_one_is_not_accused(monkeypatch, make_model, name):
    owner, attribute, parts = TORCHS[name]
    own = getattr(owner, attribute)
    note = f"the host ran torch's own code in place of {name}"
    monkeypatch.setattr(owner, attribute, scaled(own, 1.0))
    report = srdd.scan(make_model("qwen2", layers=2))
    assert (report.verdict, report.measurements.notes) == ("healthy", (note,)), report.findings
    monkeypatch.setattr(owner, attribute, scaled(own, WRONG))
    report = srdd.scan(make_model("qwen2", layers=2))
    assert report.measurements.notes == (note,)
    assert {finding.layer for finding in report.findings} >= {0, 1}
    assert {finding.kind for finding in report.findings} == {"scale"}
    assert all(any(site.endswith(part) for part in parts) for site in sites(report))


def test_a_norm_class_in_torch_s_place_is_compared_with_torch_s(monkeypatch, make_model):
    for factor, verdict in ((1.0, "healthy"), (WRONG, "faulty")):

        class Fused(nn.Module):
            def __init__(self, width, eps=1e-5):
                super().__init__()
                self.weight, self.bias, self.eps = (
                    nn.Parameter(torch.ones(width)),
                    nn.Parameter(torch.zeros(width)),
                    eps,
                )

            def forward(self, x, factor=factor):
                return factor * functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

        with monkeypatch.context() as patch:
            patch.setattr(nn, "LayerNorm", Fused)
            report = srdd.scan(make_model("gpt2", layers=2))
        assert report.verdict == verdict, report.findings
        assert report.measurements.notes == ("the host ran torch's own code in place of torch.nn.LayerNorm",)
    assert {site.rpartition(".")[2] for site in sites(report)} <= {"ln_1", "ln_2", "ln_f"}


@pytest.mark.parametrize("mode", [WrongFunction, WrongKernel])
def test_what_a_mode_around_the_scan_changes_is_found(make_model, mode):
    with mode():
        report = srdd.scan(make_model("qwen2", layers=2))
    assert sites(report) == {f"{layer}.mlp.act_fn" for layer in LAYERS}
    assert {(finding.kind, finding.operator) for finding in report.findings} == {("scale", "silu")}


def test_what_a_hook_on_every_module_changes_is_found(make_model):
    hook = register_module_forward_hook(
        lambda module, _args, output: WRONG * output if isinstance(module, SiLUActivation) else None
    )
    try:
        report = srdd.scan(make_model("qwen2", layers=2))
    finally:
        hook.remove()
    assert sites(report) == {f"{layer}.mlp.act_fn" for layer in LAYERS}


# -- attention kernels -------------------------------------------------------------------------------------


def kernel(factor=1.0, knows_windows=True):
    """An attention kernel as flash attention is called: without a mask, told by flags what it may look at."""

    def attention(
        module,
        query,
        key,
        value,
        mask,
        scaling=None,
        sliding_window=None,
        softcap=None,
        is_causal=None,
        s_aux=None,
        **_,
    ):
        assert mask is None
        key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in (key, value))
        scores = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        rows, columns = scores.shape[-2:]
        back = torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)
        hidden = back < 0 if (module.is_causal if is_causal is None else is_causal) else back != back
        if sliding_window is not None and knows_windows:
            hidden = hidden | (back.abs() >= sliding_window)
        scores = scores.masked_fill(hidden, -math.inf)
        if s_aux is not None:
            scores = torch.cat([scores, s_aux.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
        output = factor * scores.softmax(-1)[..., :columns] @ value.float()
        return output.to(query.dtype).transpose(1, 2).contiguous(), None

    return attention


SMALL = {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
SOME = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MODELS = {
    "qwen2": (tf.Qwen2ForCausalLM, tf.Qwen2Config(**GROUPED, **SOME)),
    "mistral": (tf.MistralForCausalLM, tf.MistralConfig(**GROUPED, sliding_window=9)),
    "gemma2": (tf.Gemma2ForCausalLM, tf.Gemma2Config(**GROUPED, sliding_window=11, attn_logit_softcapping=5.0)),
    "gpt-oss": (tf.GptOssForCausalLM, tf.GptOssConfig(**GROUPED, **EXPERTS, sliding_window=8)),
    "modernbert": (tf.ModernBertForMaskedLM, tf.ModernBertConfig(**SIZES, local_attention=16)),
    "bert": (tf.BertForMaskedLM, tf.BertConfig(**SIZES)),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config(**SMALL)),
}


@pytest.fixture
def model_with(monkeypatch):
    def make(family, attention, dtype=torch.float32):
        monkeypatch.setitem(AttentionInterface._global_mapping, "fused", attention)
        monkeypatch.setitem(AttentionMaskInterface._global_mapping, "fused", flash_attention_mask)
        torch.manual_seed(5)
        architecture, config = MODELS[family]
        return architecture._from_config(config, attn_implementation="fused", dtype=dtype).eval()

    return make


@pytest.mark.parametrize(
    ("family", "dtype"), [*zip(MODELS, cycle([torch.float32, torch.bfloat16])), ("mistral", torch.float16)], ids=str
)
def test_attention_by_a_kernel_is_compared_with_the_model_s_own(model_with, family, dtype):
    report = srdd.scan(model_with(family, kernel(), dtype))
    assert report.verdict == "healthy", report.findings
    assert report.measurements.notes == ("the host ran transformers' own code in place of attention fused",)
    report = srdd.scan(model_with(family, kernel(1.3), dtype))
    assert {finding.layer for finding in report.findings} == {0, 1}
    assert all("attn" in site or "attention" in site for site in sites(report))


@pytest.mark.parametrize(("family", "layers", "window"), [("qwen2", {1}, 7), ("mistral", {0, 1}, 9)])
def test_a_kernel_that_does_not_know_windows_is_named_as_such(model_with, family, layers, window):
    report = srdd.scan(model_with(family, kernel(knows_windows=False)))
    assert {finding.layer for finding in report.findings} == layers
    assert {finding.kind for finding in report.findings} == {"wrong_constant"}
    assert f"sliding_window, configured as {window}, is ignored" in report.findings[0].suggestion


def test_what_only_long_rows_show_is_found_in_long_rows(model_with, monkeypatch):
    monkeypatch.setattr(MODELS["mistral"][1], "sliding_window", 100)
    model = model_with("mistral", kernel(knows_windows=False))
    assert srdd.scan(model).verdict == "healthy"
    report = srdd.scan(model, tokens=128)
    assert {finding.layer for finding in report.findings} == {0, 1}
    assert "sliding_window, configured as 100, is ignored" in report.findings[0].suggestion


def test_a_kernel_that_returns_its_probabilities_is_compared_in_them_too(model_with):
    def telling(module, query, key, value, mask, **options):
        output, _ = kernel()(module, query, key, value, mask, **options)
        return output, torch.zeros(*query.shape[:3], key.shape[2])

    assert {finding.layer for finding in srdd.scan(model_with("mistral", telling)).findings} == {0, 1}


@pytest.mark.slow  # compiles its kernels
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the way in which transformers makes these masks
def test_a_kernel_whose_mask_is_no_tensor_is_compared_by_its_flags():
    architecture, config = MODELS["qwen2"]
    torch.manual_seed(5)
    model = architecture._from_config(config, attn_implementation="flex_attention").eval()
    report = srdd.scan(model)
    assert report.verdict == "healthy", report.findings
    assert report.measurements.notes == ("the host ran transformers' own code in place of attention flex_attention",)


def test_of_a_model_as_it_is_no_note_is_made(make_model):
    assert srdd.scan(make_model("qwen2", layers=2)).measurements.notes == ()
