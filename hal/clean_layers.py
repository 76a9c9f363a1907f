"""Clean copies of a model's layers on the host, built from configuration and weights alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hal.checkpoint import CheckpointWeights
from hal.errors import ModelError
from hal.structure import LayerStack

# Kernels without a host form, and the host's own word for the same mathematics.
_HOST_ATTENTION = {"flash_attention_2": "sdpa", "flash_attention_3": "sdpa", "flex_attention": "sdpa"}


class WeightSource(Protocol):
    """Where clean weights come from: `tensor(name)` is the host tensor of a parameter, by its name in the
    model, or None when the source does not have it.
    """

    def tensor(self, name: str) -> torch.Tensor | None:
        """The weight called `name`, on the host."""


class CleanLayers:
    """Builds layer copies that share nothing with the scanned model: neither hooks, patched forwards nor, when
    a `checkpoint` is given, device memory.

    The structure comes from the model's class and configuration, instantiated without weights; the weights come
    from the checkpoint directory, cast to the scanned model's dtype first, or else from the model's own
    parameters. A module that is not a transformers model is deep-copied and stripped. `weights` is the
    checkpoint as a source of single tensors, None without one.
    """

    def __init__(self, model: nn.Module, stack: LayerStack, checkpoint: Path | None = None) -> None:
        self._stack = stack
        self.weights: WeightSource | None = CheckpointWeights(checkpoint) if checkpoint else None
        self._skeleton = _skeleton(model, stack)

    def layer(self, index: int, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Layer `index` on the host in `dtype`, in evaluation mode; raises ModelError when structure or weights
        do not fit, for example because the weights are quantised.
        """
        original = self._stack.layers[index]
        clean = copy.deepcopy(self._skeleton[index]) if self._skeleton else _stripped_copy(original)
        weights = {name: self._clean_weight(index, name, value) for name, value in original.state_dict().items()}
        try:
            clean.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            raise ModelError(
                f"layer {index} cannot be rebuilt on the host: {' '.join(str(error).split())[:200]}"
            ) from error
        return clean.to("cpu", dtype).eval()

    def _clean_weight(self, index: int, name: str, value: torch.Tensor) -> torch.Tensor:
        source = self.weights
        tensor = source.tensor(f"{self._stack.site(index)}.{name}") if source else None
        if tensor is None:
            return value.detach().to("cpu", copy=True)
        return tensor.to(value.dtype) if value.is_floating_point() else tensor


def _skeleton(model: nn.Module, stack: LayerStack) -> tuple[nn.Module, ...]:
    """The layers of a fresh instance of the model's class, without weights; empty when the class is no
    transformers model.
    """
    from accelerate import init_empty_weights
    from transformers import PreTrainedModel

    owner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if owner is None:
        return ()
    prefix = next(name for name, module in model.named_modules() if module is owner)
    inner = stack.path.removeprefix(f"{prefix}.") if prefix else stack.path
    with torch.device("meta"):
        layers = _fresh(owner, inner)
    if any(set(dict(layer.named_buffers())) - set(layer.state_dict()) for layer in layers):
        # Buffers that no checkpoint has must be computed. This way each weight is allocated for a moment, and leaves
        # address space behind that a limit on memory counts.
        with init_empty_weights(include_buffers=False):
            layers = _fresh(owner, inner)
    return layers


def _fresh(owner: Any, inner: str) -> tuple[nn.Module, ...]:
    fresh: nn.Module = type(owner)(_host_config(owner.config))
    return tuple(fresh.get_submodule(inner).children())


def _host_config(config: Any) -> Any:
    host = copy.deepcopy(config)
    implementation = str(getattr(config, "_attn_implementation", None))
    host._attn_implementation = _HOST_ATTENTION.get(implementation, implementation)
    host._experts_implementation = "eager"
    return host


def _stripped_copy(layer: nn.Module) -> nn.Module:
    """A copy without hooks and without attributes that shadow the class's methods."""
    clean = copy.deepcopy(layer)
    for module in clean.modules():
        for name, value in list(vars(module).items()):
            if name.endswith("_hooks") and hasattr(value, "clear"):
                value.clear()
            elif callable(value) and callable(getattr(type(module), name, None)):
                delattr(module, name)
    return clean
