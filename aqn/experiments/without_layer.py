"""A model with one layer left out: what remains when the faulty layer is not used at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hal.calls import capture_call
from hal.hooks import Hooks
from hal.structure import find_layer_stack


@contextmanager
def without_layer(model: nn.Module, layer: int) -> Iterator[None]:
    """Let `layer` return the residual stream it was given, for the block. It still runs, so caches stay in step."""
    site = find_layer_stack(model).site(layer)
    stream: list[torch.Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream[:] = [capture_call(module, args, kwargs).stream]

    with Hooks(model) as hooks:
        hooks.observe_arguments(site, note)
        hooks.transform(site, lambda _output: stream[0])
        yield
