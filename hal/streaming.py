"""A model whose layers are in memory one at a time, read from its checkpoint when their turn comes."""

from __future__ import annotations

import copy
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
    load_complete,
    quiet_transformers,
    read_config,
    read_tokenizer,
    requested_dtype,
    require_supported,
    resolve_dtype,
)
from hal.structure import LayerStack, find_layer_stack


def stream_model(
    directory: str | Path, backend: TorchBackend, dtype: str = "auto", trust_remote_code: bool = False
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
        config = read_config(directory, trust_remote_code)
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError(f"checkpoint {directory} is quantised, which cannot be streamed: leave --stream out")
        require_finite(directory)
        architecture = _architecture(config, directory, trust_remote_code)
        parts = _Parts(directory, architecture, config, weights, resolve_dtype(target, config, weights))
        model = parts.empty()
        require_supported(model, backend)
        stack = find_layer_stack(model)
        _assign(model, parts.outside(stack), backend.device)
        tokenizer = read_tokenizer(directory, trust_remote_code)
    model.config._name_or_path = str(directory)
    resident = _ResidentLayer(parts, stack, backend.device)
    for index, layer in enumerate(stack.layers):
        layer.register_forward_pre_hook(resident.turn_of(index))
    return LoadedModel(model.eval(), tokenizer, directory)


class _Parts:
    """Loads parts of one checkpoint: instances of its class from which the other modules were taken out before the
    weights were asked for.
    """

    def __init__(
        self, directory: Path, architecture: type, config: Any, weights: CheckpointWeights, dtype: torch.dtype
    ) -> None:
        self._directory = directory
        self._architecture = architecture
        self._config = config
        self._weights = weights
        self._dtype = dtype

    def empty(self) -> Any:
        """The whole model without memory; raises ModelError where weights are missing or of another shape."""
        shapes = {
            name: torch.empty(self._weights.shape(name), device="meta", dtype=self._dtype)
            for name in self._weights.slices
        }
        return self._load(self._architecture, shapes, device_map="meta")

    def outside(self, stack: LayerStack) -> nn.Module:
        """The model on the host with its layers taken out."""

        def take_out(model: Any) -> None:
            container = model.get_submodule(stack.path)
            for name, _ in list(container.named_children()):
                container.add_module(name, nn.Identity())

        return self._load(_reduced(self._architecture, take_out), self._weights.slices)

    def layer(self, site: str) -> nn.Module:
        """The module called `site` on the host."""

        def take_out(model: Any) -> None:
            parent = model
            for step in site.split("."):
                for name, _ in list(parent.named_children()):
                    if name != step:
                        parent.add_module(name, nn.Identity())
                parent = parent.get_submodule(step)
            model.all_tied_weights_keys = {}  # of modules taken out

        return self._load(_reduced(self._architecture, take_out), self._weights.slices).get_submodule(site)

    def _load(self, architecture: Any, weights: dict[str, Any], **options: Any) -> nn.Module:
        def loader(**further: Any) -> Any:
            config = copy.deepcopy(self._config)
            return architecture.from_pretrained(None, config=config, state_dict=weights, dtype=self._dtype, **further)

        return load_complete(loader, self._directory, **options)


class _ResidentLayer:
    """Which layer is in memory: the one that ran last."""

    def __init__(self, parts: _Parts, stack: LayerStack, device: torch.device) -> None:
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


def _reduced(architecture: type, take_out: Callable[[Any], None]) -> type:
    """The class, with `take_out(model)` at the end of its construction. Name and module stay: transformers looks up
    by them how stored weights become the model's.
    """

    class Reduced(architecture):  # type: ignore[misc]  # the class is known when it runs
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            take_out(self)

    Reduced.__name__, Reduced.__qualname__ = architecture.__name__, architecture.__qualname__
    Reduced.__module__ = architecture.__module__
    return Reduced


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
