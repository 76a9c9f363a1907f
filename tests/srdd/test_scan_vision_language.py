"""Models that read images too are scanned where they read texts, small and random ones here."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import srdd
from hal.structure import find_layer_stack
from srdd.batch import pack
from srdd.faults import parse_fault, simulate

TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300, "num_kv_shared_layers": 0}
TEXTS = {
    "gemma4": {**PER_LAYER, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 16},
    "llava": {},
    "mllama": {"cross_attention_layers": []},
    "qwen3_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
}
IMAGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_global_layers": 3,
    "depth": 1,
    "num_heads": 4,
    "num_attention_heads": 4,
    "attention_heads": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "image_size": 28,
    "patch_size": 14,
}


def build(kind, dtype):
    config = AutoConfig.for_model(kind)
    for name, value in {**TEXT, **TEXTS[kind]}.items():
        setattr(config.text_config, name, value)
    images = config.vision_config  # None for one that was asked for none
    for name in IMAGE.keys() & images.to_dict().keys() if images else ():
        setattr(images, name, IMAGE[name])
    if hasattr(config.text_config, "layer_types"):
        config.text_config.layer_types = config.text_config.layer_types[:2]
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).to(dtype).eval()


@pytest.mark.parametrize("kind", TEXTS)
def test_the_layers_and_the_vocabulary_are_those_of_the_texts(kind):
    model = build(kind, torch.float32)
    assert find_layer_stack(model).path == "model.language_model.layers"
    ids = pack(None, ["unused"], model)
    assert 250 < int(ids.max()) < 310  # mllama has a few more for images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_healthy_model_is_replayed_whole_and_accused_of_nothing(kind, dtype):
    report = srdd.scan(build(kind, dtype))
    assert report.findings == ()
    assert not [note for note in report.diagnosis.notes if "not replayed" in note or "not probed" in note]


@pytest.mark.parametrize("kind", TEXTS)
def test_a_faulty_layer_is_named_and_no_other(kind):
    model = build(kind, torch.float32)
    with simulate(model, [parse_fault("bias@1:sparsity=0.2,seed=1")]):
        report = srdd.scan(model)
    assert [(finding.layer, finding.kind) for finding in report.findings] == [(1, "bias")]
