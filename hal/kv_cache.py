"""Come between a layer and its key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hal.calls import CACHE_ARGUMENTS, with_cache_by_name

# Keys and values, [batch, heads, tokens, head size]; of those stored and those returned, what the layer is to get.
Read = tuple[torch.Tensor, torch.Tensor]
CacheFunction = Callable[[Read, Read], Read]


@contextmanager
def transform_cache(layer: nn.Module, function: CacheFunction) -> Iterator[None]:
    """Give `layer` what `function` makes of each access to its cache (transformers' `update`), for the block. Several
    nest: the last sees what the others made. A layer that runs without a cache is not touched.
    """
    patched: list[ExitStack] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _, named = with_cache_by_name(module, args, kwargs)
        cache = next((named[name] for name in CACHE_ARGUMENTS if named.get(name) is not None), None)
        if cache is not None and hasattr(cache, "update"):
            undo = ExitStack()
            undo.callback(_restore, cache, vars(cache).get("update"))
            cache.update = _around(cache.update, function)
            patched.append(undo)

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        if patched:
            patched.pop().close()

    with ExitStack() as handles:
        handles.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        # The last function put in is the first taken out.
        handles.callback(layer.register_forward_hook(after, prepend=True, always_call=True).remove)
        yield


def _around(update: Callable[..., Any], function: CacheFunction) -> Callable[..., Any]:
    def around(keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Read:
        stored = keys.clone(), values.clone()
        return function(stored, update(keys, values, *args, **kwargs))

    return around


def _restore(cache: Any, update: Callable[..., Any] | None) -> None:
    if update is None:
        del cache.update  # the class's own is there again
    else:
        cache.update = update
