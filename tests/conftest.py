"""Models that several tests share: one small random network of each family, and the bundled one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import hypothesis
import pytest
import torch
from torch import nn

# Time limits on examples fail at random on a machine that is shared.
hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")


def random_model(family: str, layers: int = 4, hidden: int = 64, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network of `family` with random weights, larger than the default initialisation so that layers do something."""
    import transformers as tf

    torch.manual_seed(7)
    common = {"num_hidden_layers": layers, "hidden_size": hidden, "vocab_size": 300, "initializer_range": 0.1}
    decoder = {
        **common,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    builders = {
        "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**decoder)),
        "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**decoder, head_dim=16)),
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**decoder)),
        "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**decoder)),
        "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**decoder, head_dim=16)),
        "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**decoder, num_local_experts=4)),
        "gpt2": lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(
                n_layer=layers,
                n_embd=hidden,
                n_head=4,
                vocab_size=300,
                n_positions=128,
                initializer_range=0.1,
            )
        ),
        "gpt_neox": lambda: tf.GPTNeoXForCausalLM(
            tf.GPTNeoXConfig(**common, intermediate_size=2 * hidden, num_attention_heads=4, max_position_embeddings=128)
        ),
        "bert": lambda: tf.BertModel(
            tf.BertConfig(**common, intermediate_size=2 * hidden, num_attention_heads=4, max_position_embeddings=128)
        ),
    }
    return builders[family]().to(dtype).eval()


FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "mixtral", "gpt2", "gpt_neox", "bert")
CARRYING = tuple(family for family in FAMILIES if family != "bert")


def in_turn(rows: Iterable[Any], columns: Sequence[Any]) -> list[Any]:
    """All pairs of a large table as a test's parameters: each row with one column in turn; the other pairs are slow."""
    return [
        pytest.param(*_parts(row), *_parts(column), marks=() if place == number % len(columns) else pytest.mark.slow)
        for number, row in enumerate(rows)
        for place, column in enumerate(columns)
    ]


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def byte_level_tokenizer():
    """A tokenizer in which each byte is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture
def make_model():
    """The factory of random networks."""
    return random_model
