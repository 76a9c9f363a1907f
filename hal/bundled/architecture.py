"""The shape of the bundled model and how its weights start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from hal.bundled.tokenizer import CONTEXT, END_OF_TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

LAYERS: Final = 12
_EMBEDDING_SCALE: Final = 0.5
_HEAD_SCALE: Final = 0.02


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """A freshly initialised Qwen2 of twelve layers with heads of size 32, in float32."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-6,
        # Untied, as in the large models of the family: head and embedding can then be damaged one at a time.
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).float()
    _initialise(model)
    # Generation stops at the end of a turn and at the end of a text.
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TEXT)]
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    return model


@torch.no_grad()
def _initialise(model: Qwen2ForCausalLM) -> None:
    """Scale each matrix by its fan-in, and what is added to the residual stream by depth as well.

    The usual standard deviation of 0.02 suits wide models; at width 128 the layers start too weak and learn slowly.
    """
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        scale = float(weight.shape[1] ** -0.5)
        if name.endswith("embed_tokens.weight"):
            scale = _EMBEDDING_SCALE
        elif name.endswith("lm_head.weight"):
            scale = _HEAD_SCALE
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            scale *= (2 * LAYERS) ** -0.5
        weight.normal_(0.0, scale)
