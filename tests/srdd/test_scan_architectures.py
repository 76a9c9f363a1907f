"""Architectures that nothing here was developed on, small and random: healthy ones are not accused, faulty layers are.

They compute in other ways: fused products, biases of position instead of rotations, rotations by complex numbers,
convolutions, recurrences and Fourier transforms instead of attention, residual streams in float32, blocks without a
first norm, experts, latent attention, residual streams of several lanes, results scaled and capped, parts shared by
all layers, additions in place.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import srdd
from hal.errors import ModelError
from srdd.faults import parse_fault, simulate
from tests.conftest import in_turn

COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128}
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
HYPER_CONNECTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "mlp_layer_types": ["hash_moe", "moe"],
    "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
    "num_key_value_heads": 2,
    "head_dim": 8,
    "q_lora_rank": 16,
    "o_groups": 2,
    "o_lora_rank": 16,
    "sliding_window": 16,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 16,
}
DECODERS = {
    "bloom": {"n_head": 4, "n_layer": 2},
    "cohere": GROUPED,
    "cpmant": {"dim_head": 8, "dim_ff": 64},
    "deepseek_v3": LATENT,
    "deepseek_v4": HYPER_CONNECTED,
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "falcon": {"alibi": False, "new_decoder_architecture": False},
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 1},
    "gemma3n_text": {
        "head_dim": 8,
        "layer_types": ["full_attention", "sliding_attention"],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 300,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0, 0.0],
        **GROUPED,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, **GROUPED},
    "gptj": {**SMALL, "rotary_dim": 4},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, **GROUPED},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4, **GROUPED},
    "llama4_text": {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64, **GROUPED},
    "mamba": {"state_size": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "phi": {},
    "qwen3_next": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_moe": EXPERTS,
    "rwkv": {"attention_hidden_size": 32},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
}
ENCODERS = {
    "albert": {"embedding_size": 16},
    "convbert": {"embedding_size": 32},
    "deberta-v2": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "fnet": {},
    "luke": {"entity_vocab_size": 10},
    "modernbert": {},
    "mpnet": {},
    "roberta": {},
}
ONE_LAYER = ("albert",)  # its layers are one, used twice
FLOAT32_ALONE = ("fnet",)  # the host has no Fourier transform in 16-bit formats
# Float16 with the usual initial weights: in a small network many results are subnormal.
HEALTHY = [(torch.float32, 0.1), (torch.bfloat16, 0.1), (torch.float16, 0.02)]


def build(kind, dtype, weights=0.1):
    options = DECODERS.get(kind, ENCODERS.get(kind, {}))
    config = AutoConfig.for_model(kind, **{**COMMON, "initializer_range": weights, **options})
    torch.manual_seed(0)
    make = AutoModelForCausalLM if kind in DECODERS else AutoModel
    return make.from_config(config).to(dtype).eval()


@pytest.mark.parametrize(("kind", "dtype", "weights"), in_turn([*DECODERS, *ENCODERS], HEALTHY), ids=str)
def test_a_healthy_model_is_replayed_whole_and_accused_of_nothing(kind, dtype, weights):
    model = build(kind, dtype, weights)
    if kind in FLOAT32_ALONE and dtype is not torch.float32:
        with pytest.raises(
            ModelError, match=r"FNetModel fails on token ids \[4, 64\]: RuntimeError: .*(Half|BFloat16)"
        ):
            srdd.scan(model)
        return
    report = srdd.scan(model)
    assert report.findings == ()
    leanings = [row.leaning for row in (*report.measurements.layers, *report.measurements.outside)]
    assert max((site.drift for site in leanings if site), default=0) < 0.5
    assert not [note for note in report.diagnosis.notes if "not replayed" in note]


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_level_quick_accuses_no_layer_of_passing_its_input_on_as_its_architecture_does(kind):
    assert srdd.scan(build(kind, torch.float32, weights=0.02), level="quick").findings == ()


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_a_faulty_layer_is_named_and_no_other(kind):
    fault = ("dead_zone", "bias", "scale")[len(kind) % 3]
    model = build(kind, torch.float32)
    layer = 0 if kind in ONE_LAYER else 1
    with simulate(model, [parse_fault(f"{fault}@{layer}:sparsity=0.2,seed=1")]):
        report = srdd.scan(model)
    assert [(finding.layer, finding.kind) for finding in report.findings] == [(layer, fault)]


@pytest.mark.parametrize("kind", ["deepseek_v4", "gemma3n_text"])
def test_streams_of_several_lanes_are_mixed_and_none_has_to_come_back_as_itself(kind):
    report = srdd.scan(build(kind, torch.bfloat16), level="quick")
    assert report.findings == ()
    assert all(row.pass_through is None for row in report.measurements.layers)
    assert any("pass-through does not apply" in note for note in report.diagnosis.notes)
