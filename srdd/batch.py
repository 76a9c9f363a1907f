"""Pack prompts into a rectangle of tokens, without padding: padded rows would be measured too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from hal.errors import UsageError
from hal.noise import stream_key, uniform
from hal.skeleton import input_embeddings, text_config

ROWS = 4
LENGTH = 64
UNLIMITED = 2**31 - 1  # what a model that does not say how many tokens it takes may take


def pack(tokenizer: Any | None, prompts: Sequence[str], model: nn.Module, tokens: int | None = None) -> torch.Tensor:
    """Token ids, [rows, length] int64 on the host: the prompts' tokens end to end, cut into at most ROWS rows
    of at most LENGTH. With `tokens` given the rows are of that length, as many as ROWS of LENGTH are together and one
    at least, and the prompts are repeated to fill them. Without a tokenizer the ids are drawn evenly from the
    vocabulary, the same each time. Raises UsageError when the prompts give no token or one outside the vocabulary, and
    for more `tokens` than the model has places for.
    """
    context, vocabulary = _context(model), _vocabulary(model)
    if tokens is not None and not 0 < tokens <= context:
        raise UsageError(f"rows of {tokens} tokens: {type(model).__name__} takes 1 to {context}")
    length = tokens or min(LENGTH, context)
    rows = ROWS if tokens is None else max(1, ROWS * LENGTH // tokens)
    if tokenizer is None:
        draws = uniform((rows * length,), seed=0, stream=stream_key("srdd.batch"))
        return (draws * vocabulary).long().clamp(max=vocabulary - 1).reshape(rows, length)
    ids = [token for prompt in prompts for token in tokenizer(prompt)["input_ids"]]
    if not ids:
        raise UsageError("the prompts give no token with this tokenizer: give longer prompts")
    if max(ids) >= vocabulary:
        raise UsageError(
            f"token {max(ids)} is outside the model's vocabulary of {vocabulary}: use the model's own tokenizer"
        )
    if tokens is not None:
        ids = list(islice(cycle(ids), rows * length))
    length = min(length, len(ids))
    rows = min(rows, len(ids) // length)
    return torch.tensor(ids[: rows * length], dtype=torch.long).reshape(rows, length)


def _context(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):  # a model of images too holds several
        config = text_config(config)
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return UNLIMITED


def _vocabulary(model: nn.Module) -> int:
    # The first table may be another: that of the places of an image's patches, for example.
    own = input_embeddings(model)
    for module in [own] if own else model.modules():
        if isinstance(module, nn.Embedding):
            return module.num_embeddings
    value = getattr(getattr(model, "config", None), "vocab_size", None)
    if isinstance(value, int):
        return value
    raise UsageError(
        f"{type(model).__name__} has neither an embedding nor config.vocab_size: its token ids are unknown"
    )
