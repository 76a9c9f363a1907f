"""A key-value cache in a recorded call: as it was before, what was stored in it and what was read back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from hal.kv_cache import Read
from srdd.replay.diverged import ReplayDivergedError

Change = Callable[[torch.Tensor], Any]
_HOLDERS = (Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin)


class CacheReads:
    """Stands for the `cache` among the arguments of a recorded call. `returned`: the keys and values that were read
    from it during that call, each time; `stored`: those that the call's own arithmetic, not that of a part, put in.
    Given to a module in the place of the cache, it gives the former again, as `change` makes them, and gathers the
    latter; for whatever else it is asked (the state of a recurrence, how many tokens it holds) it is the cache as it
    was before the call, changed likewise.
    """

    def __init__(self, cache: Cache, change: Change = torch.clone, returned: list[Read] | None = None) -> None:
        self.returned = [] if returned is None else returned
        self.stored: list[torch.Tensor] = []
        self._before = cache
        self._change = change
        self._asked = 0

    @classmethod
    def before(cls, cache: Cache | CacheReads) -> CacheReads:
        """What stands for a cache that is about to be used: a copy of it on the host."""
        held = cache._cache if isinstance(cache, CacheReads) else cache
        return cls(_changed(held, lambda tensor: tensor.detach().to("cpu", copy=True)))

    @cached_property
    def _cache(self) -> Any:
        return _changed(self._before, lambda tensor: self._change(tensor.clone()))  # a recurrence writes into its state

    def __getattr__(self, name: str) -> Any:
        """Of the cache as it was before."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._cache, name)

    def changed(self, change: Change) -> CacheReads:
        """The same for another call, with what it reads changed."""
        return CacheReads(self._before, change, self.returned)

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Read:
        """As of transformers' caches. Raises ReplayDivergedError where it is called more often than the cache was."""
        if self._asked == len(self.returned):
            raise ReplayDivergedError("the key-value cache was used more often than before")
        old_keys, old_values = self.returned[self._asked]
        self._asked += 1
        self.stored += [keys.clone(), values.clone()]
        self._cache.update(keys, values, *args, **kwargs)  # so that it holds a token more
        return self._change(old_keys), self._change(old_values)


def recorded_cache(value: Any) -> Any:
    """An argument of a call that is to be recorded: what stands for it where it is a cache, or itself."""
    return CacheReads.before(value) if isinstance(value, (Cache, CacheReads)) else value


def reads_in(arguments: Iterable[Any]) -> CacheReads | None:
    """What stands for the cache among the arguments of a call; None where it was given none."""
    return next((value for value in arguments if isinstance(value, CacheReads)), None)


def _changed(value: Any, change: Change) -> Any:
    """A copy of what a cache is made of with every tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, _HOLDERS):
        copied = copy.copy(value)
        # `update` is there where somebody came between the layer and this very cache.
        held = {name: _changed(entry, change) for name, entry in vars(value).items() if name != "update"}
        vars(copied).clear()
        vars(copied).update(held)
        return copied
    if isinstance(value, dict):
        return {key: _changed(entry, change) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_changed(entry, change) for entry in value)
    return value
