"""A fresh instance of a model's class, without weights: structure that no hook, patch or damage has touched."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from hal.host_attention import host_implementation
from hal.shipped_code import replaced, shipped_class
from hal.shipped_torch import torch_as_shipped


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
    """A new instance of the class of `owner`, a transformers model, from its configuration, for the host, with
    transformers' code as its files have it. Whether it takes memory is up to the context that it is called in.
    """
    instance = shipped_class(type(owner))(_host_config(owner))
    classes = {cls: shipped_class(cls) for cls in {type(part) for part in instance.modules()}}
    for part in instance.modules():
        part.__class__ = classes[type(part)]
    return instance


def foreign_code(model: nn.Module) -> tuple[str, ...]:
    """What the transformers model in `model` runs in place of transformers' own code, and `fresh_instance` does not:
    replaced functions and methods, and its attention where the host has another.
    """
    found = transformers_model(model)
    if found is None:
        return ()
    owner = found[1]
    own = getattr(owner.config, "_attn_implementation", None)
    attention = (f"attention {own}",) if host_implementation(owner, own) != own else ()
    modules = dict.fromkeys(type(part).__module__ for part in owner.modules())
    return (*(name for module in modules for name in replaced(module)), *attention)


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
    with torch_as_shipped(), torch.device("meta"):
        return fresh_instance(owner)


def has_other_kernels(module: nn.Module) -> bool:
    """Whether `module` is a mixture's experts, of which transformers has several kernels: the host's copy may call its
    parts on rows in another order than the model, whose kernel takes them together.
    """
    return hasattr(module, "is_concatenated") and hasattr(getattr(module, "config", None), "_experts_implementation")


def _host_config(owner: Any) -> Any:
    host = copy.deepcopy(owner.config)
    implementation = getattr(host, "_attn_implementation", None)
    host._attn_implementation = host_implementation(owner, implementation)
    host._experts_implementation = "eager"
    return host
