"""A fresh instance of a model's class, without weights: structure that no hook, patch or damage has touched."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

# Kernels without a host form, and the host's own word for the same mathematics.
_HOST_ATTENTION = {"flash_attention_2": "sdpa", "flash_attention_3": "sdpa", "flex_attention": "sdpa"}


def transformers_model(model: nn.Module) -> tuple[str, Any] | None:
    """The outermost transformers model in `model`, which may wrap it, with its dotted name there; None without one."""
    from transformers import PreTrainedModel

    return next(((name, module) for name, module in model.named_modules() if isinstance(module, PreTrainedModel)), None)


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """The module that turns token ids into activations in the transformers model in `model`; None where none says."""
    found = transformers_model(model)
    if found is None:
        return None
    try:
        embeddings: nn.Module | None = found[1].get_input_embeddings()
    except NotImplementedError:
        return None
    return embeddings


def text_config(config: Any) -> Any:
    """What a model's transformers configuration says of its part for texts; of two, an encoder and a decoder, of the
    decoder.
    """
    try:
        return config.get_text_config()
    except ValueError:
        return config.get_text_config(decoder=True)


def fresh_instance(owner: Any) -> Any:
    """A new instance of the class of `owner`, a transformers model, from its configuration, for the host. Whether it
    takes memory is up to the context that it is called in.
    """
    return type(owner)(_host_config(owner.config))


def stripped_copy(module: nn.Module, stand_ins: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy without hooks and without attributes that shadow the class's methods. `stand_ins` take the place of
    the objects with these ids.
    """
    clean = copy.deepcopy(module, stand_ins)
    for part in clean.modules():
        for name, value in list(vars(part).items()):
            if name.endswith("_hooks") and hasattr(value, "clear"):
                value.clear()
            elif callable(value) and callable(getattr(type(part), name, None)):
                delattr(part, name)
    return clean


def on_meta(owner: Any) -> Any:
    """As `fresh_instance`, with every tensor on the meta device."""
    with torch.device("meta"):
        return fresh_instance(owner)


def has_other_kernels(module: nn.Module) -> bool:
    """Whether `module` is a mixture's experts, of which transformers has several kernels: the host's copy may call its
    parts on rows in another order than the model, whose kernel takes them together.
    """
    return hasattr(module, "is_concatenated") and hasattr(getattr(module, "config", None), "_experts_implementation")


def _host_config(config: Any) -> Any:
    host = copy.deepcopy(config)
    implementation = str(getattr(config, "_attn_implementation", None))
    host._attn_implementation = _HOST_ATTENTION.get(implementation, implementation)
    host._experts_implementation = "eager"
    return host
