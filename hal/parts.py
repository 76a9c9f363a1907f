"""Parts of a model as transformers loads the whole: conversions, dtypes and buffers included."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hal.checkpoint import CheckpointWeights
from hal.models import load_complete


class CheckpointParts:
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

    def outside(self, path: str) -> nn.Module:
        """The model on the host with its layers, those in the container called `path`, taken out."""

        def take_out(model: Any) -> None:
            container = model.get_submodule(path)
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
