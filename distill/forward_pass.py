"""One forward pass of a model, with what distillation looks at inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distill.key_values import KeyValues
from hal.errors import UsageError


@dataclass(frozen=True)
class ForwardPass:
    """What a model made of a batch: `logits` [batch, tokens, vocabulary]; `hidden` states [batch, tokens, width] behind
    each layer; `key_values` and, if it was asked for, `attention` [batch, heads, tokens, tokens] of each; and which
    tokens are `counted` [batch, tokens].
    """

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    key_values: tuple[KeyValues, ...]
    attention: tuple[torch.Tensor, ...] | None
    counted: torch.Tensor

    def attention_of(self, layer: int) -> torch.Tensor:
        """The attention weights of a layer; UsageError when the pass was made without."""
        if self.attention is None:
            raise UsageError("attention weights are wanted and this pass was made without: run it with attention=True")
        return self.attention[layer]

    def detached(self) -> ForwardPass:
        """The same without gradients, so that a loss cannot pull at who made it."""
        return ForwardPass(
            self.logits.detach(),
            tuple(entry.detach() for entry in self.hidden),
            tuple(KeyValues(entry.keys.detach(), entry.values.detach()) for entry in self.key_values),
            self.attention and tuple(entry.detach() for entry in self.attention),
            self.counted,
        )

    def shapes(self) -> list[torch.Size]:
        """The shapes of its hidden states, keys, values and attention."""
        return [
            *(entry.shape for entry in (*self.hidden, *(self.attention or ()))),
            *(tensor.shape for entry in self.key_values for tensor in (entry.keys, entry.values)),
        ]


def run_pass(model: nn.Module, batch: Mapping[str, torch.Tensor], attention: bool = False) -> ForwardPass:
    """Run `model` on `batch` (input_ids, attention_mask). `attention` asks for attention weights, for which the model
    is switched to eager attention, the only form that has them. Gradients are those of the caller's mode. Raises
    UsageError for a model that keeps no keys and values of all tokens.
    """
    if attention:
        require_eager(model)
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=True,
        output_hidden_states=True,
        output_attentions=attention,
    )
    tokens = batch["input_ids"].shape[1]
    return ForwardPass(
        logits=output.logits,
        hidden=tuple(output.hidden_states[1:]),
        key_values=_key_values(model, output.past_key_values, len(output.hidden_states) - 1, tokens),
        attention=tuple(output.attentions) if attention else None,
        counted=batch["attention_mask"].bool(),
    )


def require_eager(model: Any) -> None:
    """Switch a transformers model to eager attention; UsageError for one that cannot."""
    if getattr(model.config, "_attn_implementation", None) == "eager":
        return
    try:
        model.set_attn_implementation("eager")
    except (AttributeError, ValueError) as error:
        raise UsageError(f"{type(model).__name__} gives no attention weights: use no attention weighting") from error


def _key_values(model: nn.Module, cache: Any, number: int, tokens: int) -> tuple[KeyValues, ...]:
    name = type(model).__name__
    if cache is None:
        raise UsageError(f"{name} returned no keys and values: switch gradient checkpointing off, or use another model")
    layers = [entry for entry in getattr(cache, "layers", ()) if getattr(entry, "keys", None) is not None]
    if len(layers) != number or any(entry.keys.shape[-2] != tokens for entry in layers):
        raise UsageError(
            f"{name} does not keep the keys and values of all {tokens} tokens in all {number} layers (a sliding "
            "window, or layers without attention): use shorter texts or another model"
        )
    return tuple(KeyValues(entry.keys, entry.values) for entry in layers)
