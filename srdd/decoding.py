"""Run a layer with a key-value cache, as when a text is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedConfig

from hal.errors import one_line
from hal.memory import out_of_memory
from srdd.walk import LayerVisit


def with_cache(visit: LayerVisit, tokens: int, run: Callable[[DynamicCache, int], None], failed: str) -> None:
    """Give `run` an empty cache for the layer, and how many tokens it may take: `tokens`, or fewer where the layer has
    fewer or keeps only a window of them. Nothing comes of it where the layer wants a cache of its model's own making;
    where it cannot be run on some of its tokens, `visit.notes` says what `failed`.
    """
    try:
        cache = DynamicCache(config=_config(visit.call.layer))
        run(cache, min(tokens, visit.call.tokens, *_windows(cache)))
    except (AttributeError, TypeError, ValueError, LookupError):
        return  # a cache that this architecture does not know
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        visit.notes.append(f"{visit.site}: {failed}: {one_line(error)}")


def _config(layer: nn.Module) -> Any:
    """The configuration that a model's parts hold, which says what each layer caches; None where they hold none."""
    found = (getattr(module, "config", None) for module in layer.modules())
    config = next((entry for entry in found if isinstance(entry, PreTrainedConfig)), None)
    return None if config is None else config.get_text_config(decoder=True)


def _windows(cache: DynamicCache) -> list[int]:
    """How many tokens each layer of the cache keeps, where that is limited."""
    return [layer.sliding_window for layer in cache.layers if hasattr(layer, "sliding_window")]
