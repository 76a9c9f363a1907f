"""A streamed model computes what the loaded one does, with one layer in memory at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import hal
from hal.checkpoint import INDEX, SINGLE
from hal.models import load_model
from hal.streaming import stream_model
from hal.structure import find_layer_stack
from tests.conftest import FAMILIES, random_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers.*")

IDS = torch.arange(24).reshape(2, 12) % 300
SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "vocab_size": 300,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# What the common families do not have: buffers inside layers, merged experts, layers of two kinds, shared embeddings,
# a head that is renamed on loading, another kind of block.
OTHERS = {
    "buffers that are not stored": lambda: tf.GPTJForCausalLM(
        tf.GPTJConfig(
            n_layer=3,
            n_embd=64,
            n_head=4,
            vocab_size=300,
            n_positions=128,
            rotary_dim=8,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "two kinds of attention": lambda: tf.GPTNeoForCausalLM(
        tf.GPTNeoConfig(
            num_layers=4,
            hidden_size=64,
            num_heads=4,
            vocab_size=300,
            max_position_embeddings=128,
            attention_types=[[["global", "local"], 2]],
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "a shared expert": lambda: tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=32)
    ),
    "embeddings shared with the head": lambda: tf.Qwen2ForCausalLM(
        tf.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "a masked language model": lambda: tf.BertForMaskedLM(tf.BertConfig(**SIZES)),
    "one layer used three times": lambda: tf.AlbertModel(tf.AlbertConfig(**SIZES, embedding_size=32)),
}


@pytest.fixture(scope="module")
def cpu() -> hal.TorchBackend:
    return hal.get_backend("cpu-reference")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    random_model("qwen2", layers=3).save_pretrained(tmp_path)
    return tmp_path


def output(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)[0]


def layers_in_memory(model: torch.nn.Module) -> list[int]:
    layers = find_layer_stack(model).layers
    return [index for index, layer in enumerate(layers) if not all(weight.is_meta for weight in layer.parameters())]


def same_as_loaded(directory: Path, backend: hal.TorchBackend, dtype: str = "auto") -> None:
    loaded, streamed = (load(directory, backend, dtype).model for load in (load_model, stream_model))
    assert type(streamed) is type(loaded)
    assert not streamed.training
    assert torch.equal(output(streamed), output(loaded))
    assert layers_in_memory(streamed) == [len(find_layer_stack(streamed)) - 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_in_shards_computes_the_same(tmp_path, cpu, family):
    random_model(family, layers=3).save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / INDEX).is_file()
    same_as_loaded(tmp_path, cpu)


@pytest.mark.parametrize("name", OTHERS)
def test_unusual_layers_compute_the_same(tmp_path, cpu, name):
    OTHERS[name]().save_pretrained(tmp_path)
    same_as_loaded(tmp_path, cpu)


@pytest.mark.parametrize("family", ["gemma2", "mixtral", "gpt2"])
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16", "float16"])
def test_weights_are_converted_to_the_dtype_asked_for(tmp_path, cpu, family, asked):
    random_model(family, layers=2, dtype=torch.bfloat16).save_pretrained(tmp_path)
    same_as_loaded(tmp_path, cpu, asked)


def test_dtype_is_the_weights_own_where_the_configuration_has_none(checkpoint, cpu):
    random_model("qwen2", layers=2, dtype=torch.bfloat16).save_pretrained(checkpoint)
    config = checkpoint / "config.json"
    config.write_text(
        json.dumps({key: value for key, value in json.loads(config.read_text()).items() if key != "dtype"})
    )
    assert stream_model(checkpoint, cpu).model.dtype == torch.bfloat16
    same_as_loaded(checkpoint, cpu)


def test_at_most_one_layer_is_in_memory(checkpoint, cpu):
    model = stream_model(checkpoint, cpu).model
    seen = []
    for layer in find_layer_stack(model).layers:
        layer.register_forward_hook(lambda *_: seen.append(layers_in_memory(model)))
    assert layers_in_memory(model) == []
    output(model)
    assert seen == [[0], [1], [2]]


def test_a_model_can_run_again_and_backwards(checkpoint, cpu):
    model = stream_model(checkpoint, cpu).model
    first = output(model)
    assert torch.equal(output(model), first)
    x = torch.randn(1, 4, 64)
    mlps = [layer.mlp for layer in find_layer_stack(load_model(checkpoint, cpu).model).layers]
    positions = model.model.rotary_emb(x, torch.arange(4)[None])
    for index in (2, 0, 1):
        layer = find_layer_stack(model).layers[index]
        layer(x, position_embeddings=positions)
        assert layers_in_memory(model) == [index]
        assert torch.equal(layer.mlp(x), mlps[index](x))


def test_shared_embeddings_stay_shared(tmp_path, cpu):
    OTHERS["embeddings shared with the head"]().save_pretrained(tmp_path)
    model = stream_model(tmp_path, cpu).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight.is_meta


def test_hooks_on_the_streamed_model_act(checkpoint, cpu):
    model = stream_model(checkpoint, cpu).model
    find_layer_stack(model).layers[1].mlp.down_proj.register_forward_hook(lambda *arguments: 0 * arguments[2])
    loaded = load_model(checkpoint, cpu).model
    find_layer_stack(loaded).layers[1].mlp.down_proj.register_forward_hook(lambda *arguments: 0 * arguments[2])
    assert torch.equal(output(model), output(loaded))


# -- what is refused, and when: before any layer runs ------------------------------------------------------

DOWN = "model.layers.1.mlp.down_proj.weight"


def edit_weights(directory: Path, change) -> None:
    weights = load_file(directory / SINGLE)
    change(weights)
    save_file(weights, directory / SINGLE, metadata={"format": "pt"})


def refusal(directory: Path, backend: hal.TorchBackend, **options) -> str:
    with pytest.raises(hal.UsageError) as caught:
        stream_model(directory, backend, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(DOWN), f"lacks the weight '{DOWN}'"),
        (lambda weights: weights.pop("model.norm.weight"), "lacks the weight 'model.norm.weight'"),
        (
            lambda weights: weights.update({DOWN: torch.ones(64, 96)}),
            "has shape (64, 96) and the model needs (64, 128)",
        ),
        (lambda weights: weights[DOWN].view(-1)[7].fill_(float("inf")), f"weight '{DOWN}' in"),
    ],
    ids=["missing in a layer", "missing outside", "another shape", "not finite"],
)
def test_damaged_checkpoints_are_refused_before_a_layer_runs(checkpoint, cpu, change, message):
    edit_weights(checkpoint, change)
    assert message in refusal(checkpoint, cpu)


def test_truncated_file_is_named(checkpoint, cpu):
    file = checkpoint / SINGLE
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file} is truncated" in refusal(checkpoint, cpu)


def test_missing_directory_and_unknown_dtype_are_named(checkpoint, cpu):
    assert "nowhere does not exist" in refusal(checkpoint / "nowhere", cpu)
    assert "unknown dtype 'fp16'" in refusal(checkpoint, cpu, dtype="fp16")


def test_a_dtype_that_the_backend_lacks_is_refused(checkpoint):
    class Narrow(hal.HostBackend):
        name = "narrow"
        dtypes = (torch.bfloat16,)

    assert "is float32, which backend 'narrow' does not support" in refusal(checkpoint, Narrow())


def test_a_quantised_checkpoint_is_refused(checkpoint, cpu):
    config = checkpoint / "config.json"
    quantised = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    config.write_text(json.dumps(json.loads(config.read_text()) | quantised))
    assert "is quantised, which cannot be streamed: leave --stream out" in refusal(checkpoint, cpu)


def test_a_checkpoint_that_vanishes_while_it_is_read_is_one_line(checkpoint, cpu, tmp_path):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    model = stream_model(copy, cpu).model
    (copy / SINGLE).write_bytes(b"")
    with pytest.raises(hal.UsageError, match="cannot be loaded"):
        output(model)


REMOTE = """
from transformers import Qwen2Config, Qwen2ForCausalLM

class OwnConfig(Qwen2Config):
    model_type = "own"

class OwnModel(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


def test_remote_code_is_refused_or_runs_as_asked(checkpoint, cpu, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    (checkpoint / "own.py").write_text(REMOTE)
    config = checkpoint / "config.json"
    own = {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    config.write_text(json.dumps(json.loads(config.read_text()) | own))
    assert "remote code, which is refused" in refusal(checkpoint, cpu)
    streamed = stream_model(checkpoint, cpu, trust_remote_code=True).model
    assert type(streamed).__name__ == "OwnModel"
    loaded = load_model(checkpoint, cpu, trust_remote_code=True).model
    assert torch.equal(output(streamed), output(loaded))
