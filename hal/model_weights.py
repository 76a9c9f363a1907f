"""The weights of a checkpoint by the names, and in the form, that they have in a model."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from hal.checkpoint import CheckpointWeights
from hal.errors import ModelError
from hal.models import quiet_transformers
from hal.parts import CheckpointParts
from hal.skeleton import transformers_model
from hal.structure import LayerStack, dotted
from hal.weight_names import find_naming


class WeightSource(Protocol):
    """Where clean weights come from: `tensor(name)` is the host tensor of a parameter, by its name in the
    model, or None when the source does not have it.
    """

    def tensor(self, name: str) -> torch.Tensor | None:
        """The weight called `name`, on the host."""


class ModelWeights:
    """What `directory` has for the parameters of `model`, in the checkpoint's own precision. A weight that modules
    share is found under each of its names. One that is stored under another name, split or merged (the experts of a
    mixture), is what transformers makes of the checkpoint; of such, those of one layer are held at a time. `absent`
    are the parameters that were asked for and are not there in the model's shape.
    """

    def __init__(self, model: nn.Module, stack: LayerStack, directory: Path) -> None:
        self.absent: set[str] = set()
        self._stored = CheckpointWeights(directory)
        self._shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
        self._shared = _names_of_shared(model)
        stored = {name: self._stored.shape(name) for name in self._stored.slices}
        self._naming = find_naming(self._shapes, stored)
        self._stack = stack
        self._converted = _Converted.of(model, stack, directory, self._stored)

    def tensor(self, name: str) -> torch.Tensor | None:
        """The weight called `name`, on the host; None when the checkpoint does not have it in the model's shape."""
        known = self._shared.get(name, [name])
        found = next(filter(None, map(self._as_stored, known)), None)
        if found is not None:
            return self._stored.tensor(found)
        made = self._converted.tensor(name) if self._converted else None
        if made is not None and tuple(made.shape) == self._shapes.get(name):
            return made
        if name in self._shapes:
            self.absent.add(name)
        return None

    def _as_stored(self, name: str) -> str | None:
        """The name under which the checkpoint has the weight called `name` as it is."""
        stored = self._naming.stored(name) if self._naming else None
        if stored is None or stored not in self._stored.slices:
            return None
        return stored if self._shapes.get(name) in (None, self._stored.shape(stored)) else None


class _Converted:
    """Weights as transformers makes them of the stored ones, a layer at a time, or all of them outside the layers."""

    def __init__(self, parts: CheckpointParts, prefix: str, stack: LayerStack) -> None:
        self._parts = parts
        self._prefix = f"{prefix}." if prefix else ""
        self._stack = stack
        self._path = stack.path.removeprefix(self._prefix)
        self._held: tuple[int | None, dict[str, torch.Tensor]] | None = None

    @classmethod
    def of(cls, model: nn.Module, stack: LayerStack, directory: Path, weights: CheckpointWeights) -> _Converted | None:
        """None for a model that is not transformers', or whose weights are quantised."""
        found = transformers_model(model)
        dtype = weights.widest_dtype()
        if found is None or dtype is None:
            return None
        prefix, owner = found
        if getattr(owner.config, "quantization_config", None) is not None:
            return None
        return cls(CheckpointParts(directory, type(owner), owner.config, weights, dtype), prefix, stack)

    def tensor(self, name: str) -> torch.Tensor | None:
        """The weight called `name` in the scanned model, or None."""
        index = self._stack.layer_of(name)
        if self._held is None or self._held[0] != index:
            self._held = (index, self._load(index))
        return self._held[1].get(name)

    def _load(self, index: int | None) -> dict[str, torch.Tensor]:
        try:
            with quiet_transformers():
                if index is None:
                    site, part = "", self._parts.outside(self._path)
                else:
                    site = dotted(self._path, str(index))
                    part = self._parts.layer(site)
        except ModelError:  # a checkpoint of another class than the model's: its weights are absent, and said to be
            return {}
        return {
            self._prefix + dotted(site, name): value.detach()
            for name, value in part.named_parameters(remove_duplicate=False)
        }


def _names_of_shared(model: nn.Module) -> dict[str, list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {name: shared for shared in names.values() for name in shared}
