"""Faults in what attention reads back from its key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

# The keyword under which model code has handed its cache down, over the years.
_KEYWORDS = ("past_key_values", "past_key_value", "layer_past")


@contextmanager
def corrupt_cache(layer: nn.Module, corrupt: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Pass the keys and values, [batch, heads, tokens, head size], that `layer` gets from its cache through `corrupt`,
    for the block. A layer that runs without a cache is not touched.
    """
    patched: list[ExitStack] = []

    def before(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        cache = next((kwargs[key] for key in _KEYWORDS if kwargs.get(key) is not None), None)
        if cache is not None and hasattr(cache, "update"):
            undo = ExitStack()
            undo.callback(_restore, cache, vars(cache).get("update"))
            cache.update = _corrupted(cache.update, corrupt)
            patched.append(undo)

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        if patched:
            patched.pop().close()

    with ExitStack() as handles:
        handles.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        # The last fault put in is the first taken out.
        handles.callback(layer.register_forward_hook(after, prepend=True, always_call=True).remove)
        yield


def _corrupted(update: Callable[..., Any], corrupt: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def corrupted(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = update(*args, **kwargs)
        return corrupt(keys), corrupt(values)

    return corrupted


def _restore(cache: Any, update: Callable[..., Any] | None) -> None:
    if update is None:
        del cache.update  # the class's own is there again
    else:
        cache.update = update
