"""A model whose layers are in memory one at a time, read from its checkpoint when their turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hal.backend import TorchBackend
from hal.checkpoint import CheckpointWeights, require_finite
from hal.errors import ModelError
from hal.memory import named_when_full
from hal.models import (
    LoadedModel,
    architecture_of,
    quiet_transformers,
    read_config,
    read_tokenizer,
    requested_dtype,
    require_supported,
    resolve_dtype,
)
from hal.parts import CheckpointParts
from hal.structure import LayerStack, find_layer_stack


def stream_model(
    directory: str | Path,
    backend: TorchBackend,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    attention: str | None = None,
) -> LoadedModel:
    """As `load_model`, for a model larger than memory: what lies outside the layer stack is on the device, each
    layer is read from safetensors when it is about to run and dropped when another one is. Same weights, bit for
    bit, because transformers loads the parts as it loads the whole: conversions, dtype and buffers included.
    Raises the same errors, and ModelError for quantised checkpoints and layers that share weights with others.
    """
    directory = Path(directory)
    target = requested_dtype(dtype, backend)
    weights = CheckpointWeights(directory)
    cure = "give the process more: a streamed model needs what lies outside its layers, and one layer"
    with named_when_full(f"checkpoint {directory}, even one layer at a time,", cure), quiet_transformers():
        config = read_config(directory, trust_remote_code, attention)
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError(f"checkpoint {directory} is quantised, which cannot be streamed: leave --stream out")
        require_finite(directory)
        architecture = _architecture(config, directory, trust_remote_code)
        parts = CheckpointParts(directory, architecture, config, weights, resolve_dtype(target, config, weights))
        model = parts.empty()
        require_supported(model, backend)
        stack = find_layer_stack(model)
        _assign(model, parts.outside(stack.path), backend.device)
        tokenizer = read_tokenizer(directory, trust_remote_code)
    model.config._name_or_path = str(directory)
    resident = _ResidentLayer(parts, stack, backend.device)
    for index, layer in enumerate(stack.layers):
        layer.register_forward_pre_hook(resident.turn_of(index))
    return LoadedModel(model.eval(), tokenizer, directory)


class _ResidentLayer:
    """Which layer is in memory: the one that ran last."""

    def __init__(self, parts: CheckpointParts, stack: LayerStack, device: torch.device) -> None:
        self._parts = parts
        self._stack = stack
        self._device = device
        self._index: int | None = None
        self._empty: dict[str, torch.Tensor] = {}

    def turn_of(self, index: int) -> Callable[[nn.Module, Any], None]:
        """A hook for layer `index` that brings its weights before it runs."""

        def before(_layer: nn.Module, _args: Any) -> None:
            if index != self._index:
                self._drop()
                self._bring(index)

        return before

    def _drop(self) -> None:
        if self._index is not None:
            _set(self._stack.layers[self._index], self._empty)
            self._index = None

    def _bring(self, index: int) -> None:
        layer = self._stack.layers[index]
        self._empty = dict(_tensors(layer))
        with quiet_transformers():
            _assign(layer, self._parts.layer(self._stack.site(index)), self._device)
        self._index = index


def _architecture(config: Any, directory: Path, trust_remote_code: bool) -> type:
    import transformers

    remote = trust_remote_code and getattr(config, "auto_map", None)
    architecture = transformers.AutoModelForCausalLM if remote else architecture_of(config, directory)
    if hasattr(architecture, "config_class"):
        return architecture  # type: ignore[no-any-return]  # transformers is untyped
    with torch.device("meta"):
        return type(architecture.from_config(config, trust_remote_code=trust_remote_code))


def _assign(target: nn.Module, source: nn.Module, device: torch.device) -> None:
    """Give `target` the parameters and buffers of `source`, moved to `device`; those that share one tensor go on
    sharing it.
    """
    source = source.to(device)
    _set(target, dict(_tensors(source)))


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _set(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, tensor)
