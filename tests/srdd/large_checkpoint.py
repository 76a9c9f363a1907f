"""Write a checkpoint of many equal layers, one shard each, without ever holding more than one layer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from hal.checkpoint import INDEX

LAYER = "model.layers.0."


def write_checkpoint(directory: Path, layers: int, hidden: int, intermediate: int) -> int:
    """A Llama in bfloat16 with random weights, the same in each layer; returns the bytes of its weights."""
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": 300,
        "max_position_embeddings": 128,
        "initializer_range": 0.05,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_hidden_layers=1)).to(torch.bfloat16)
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    shards = {"outside.safetensors": {name: weight for name, weight in weights.items() if LAYER not in name}}
    for index in range(layers):
        shards[f"layer-{index}.safetensors"] = {
            name.replace(LAYER, f"model.layers.{index}."): weight for name, weight in weights.items() if LAYER in name
        }
    directory.mkdir(parents=True, exist_ok=True)
    for file, shard in shards.items():
        save_file(shard, directory / file, metadata={"format": "pt"})
    names = {name: file for file, shard in shards.items() for name in shard}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    config = transformers.LlamaConfig(
        **sizes, num_hidden_layers=layers, dtype="bfloat16", architectures=["LlamaForCausalLM"]
    )
    config.save_pretrained(directory)
    return sum((directory / file).stat().st_size for file in shards)
