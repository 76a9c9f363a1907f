"""Clean copies of a model's layers on the host, built from configuration and weights alone."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hal.errors import ModelError
from hal.model_weights import WeightSource
from hal.shipped_torch import torch_as_shipped
from hal.skeleton import fresh_instance, on_meta, stripped_copy, transformers_model
from hal.structure import LayerStack

_NO_COPY = "level quick needs no copy"


class CleanLayers:
    """Builds layer copies that share nothing with the scanned model: neither hooks, patched forwards nor, when
    clean `weights` are given, device memory.

    The structure comes from the model's class and configuration, instantiated without weights; the weights come
    from `weights`, a checkpoint for example, cast to the scanned model's dtype first, or else from the model's own
    parameters. A module that is not a transformers model is deep-copied and stripped.
    """

    def __init__(self, model: nn.Module, stack: LayerStack, weights: WeightSource | None = None) -> None:
        self._stack = stack
        self.weights = weights
        self._skeleton = _skeleton(model, stack)

    def layer(self, index: int, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Layer `index` on the host in `dtype`, in evaluation mode; raises ModelError when structure or weights
        do not fit, for example because the weights are quantised.
        """
        original = self._stack.layers[index]
        clean = copy.deepcopy(self._skeleton[index]) if self._skeleton else stripped_copy(original)
        state = original.state_dict()
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ModelError(f"layer {index} cannot be rebuilt on the host (its weights are packed); {_NO_COPY}")
        weights = {name: self._clean_weight(index, name, value) for name, value in state.items()}
        try:
            clean.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            raise ModelError(
                f"layer {index} cannot be rebuilt on the host ({' '.join(str(error).split())[:200]}); {_NO_COPY}"
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

    found = transformers_model(model)
    if found is None:
        return ()
    prefix, owner = found
    inner = stack.path.removeprefix(f"{prefix}.") if prefix else stack.path
    layers = tuple(on_meta(owner).get_submodule(inner).children())
    if any(set(dict(layer.named_buffers())) - set(layer.state_dict()) for layer in layers):
        # Buffers that no checkpoint has must be computed. This way each weight is allocated for a moment, and leaves
        # address space behind that a limit on memory counts.
        with torch_as_shipped(), init_empty_weights(include_buffers=False):
            layers = tuple(fresh_instance(owner).get_submodule(inner).children())
    return layers
