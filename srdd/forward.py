"""Run a model forward once, without a key-value cache: a layer that runs again would add to its cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hal.errors import HalError, ModelError, one_line
from hal.memory import out_of_memory


def run_forward(model: nn.Module, ids: torch.Tensor) -> None:
    """One forward pass over `ids`, [rows, length], for the sake of the hooks; what it returns is dropped. Raises
    ModelError for a model that fails on them: it wants other inputs, or has code for other dtypes.
    """
    options = {"use_cache": False} if accepts(model, "use_cache") else {}
    try:
        model(ids, **options)
    except HalError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ModelError(f"{type(model).__name__} fails on token ids {list(ids.shape)}: {one_line(error)}") from error


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward has a parameter of that name."""
    return argument in inspect.signature(model.forward).parameters


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Switch key-value caches off in the configuration of every module, a wrapped model's too, for the block."""
    found: Iterator[Any] = (getattr(module, "config", None) for module in model.modules())
    configs = {id(config): config for config in found if getattr(config, "use_cache", None) is True}
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs.values():
            config.use_cache = True
