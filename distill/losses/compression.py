"""Which of a teacher's tokens are kept where a student has room for fewer."""

from __future__ import annotations

from typing import Final, Literal, get_args

import torch
from torch.nn import functional

from distill.key_values import KeyValues
from hal.errors import UsageError

Compression = Literal["full", "right_crop", "r_kv"]
COMPRESSIONS: Final = get_args(Compression)

BALANCE: Final = 0.1  # R-KV's: importance counts a tenth, redundancy the rest
WINDOW: Final = 8  # the last queries, which importance is read off


def kept_tokens(
    method: Compression,
    length: int | None,
    layer: KeyValues,
    counted: torch.Tensor,
    attention: torch.Tensor | None = None,
    balance: float = BALANCE,
) -> torch.Tensor:
    """Which of the `counted` tokens [batch, tokens] of a layer stay, as a mask of the same shape. "full": all;
    "right_crop": the last `length`; "r_kv": the `length` that score highest (R-KV, Cai et al. 2025, arXiv 2505.24133):
    score = balance * importance - (1 - balance) * redundancy, importance being the attention [batch, heads, queries,
    tokens] from the last `WINDOW` tokens, redundancy the softmax of the mean cosine similarity to the other keys. All
    heads keep the same tokens (their scores are averaged), so that one weight a token has a meaning; and no token is
    kept for being recent, as a cache must, because a student is compared with few. Raises UsageError where `length` or
    `attention` is needed and missing.
    """
    counted = counted.bool()
    if method == "full":
        return counted
    if length is None or length < 1:
        raise UsageError(f"compression {method} keeps {length} tokens: give a length of 1 or more")
    order = counted.int().flip(1).cumsum(1).flip(1)  # 1 for the last counted token, 2 for the one before it
    if method == "right_crop":
        return counted & (order <= length)
    if attention is None:
        raise UsageError("compression r_kv needs attention weights: run the teacher with eager attention")
    asking = counted & (order <= WINDOW)
    scores = _scores(layer.keys.detach(), attention.detach(), counted, asking, balance).masked_fill(
        ~counted, -torch.inf
    )
    best = scores.topk(min(length, scores.shape[1]), dim=1).indices
    return torch.zeros_like(counted).scatter(1, best, True) & counted


def _scores(
    keys: torch.Tensor, attention: torch.Tensor, counted: torch.Tensor, asking: torch.Tensor, balance: float
) -> torch.Tensor:
    """R-KV's score of each token, [batch, tokens], the mean over heads."""
    queries = asking.float()[:, None, :, None]
    importance = ((attention.float() * queries).sum(2) / queries.sum(2)).mean(1)
    return balance * importance - (1 - balance) * _redundancy(keys.float(), counted)


def _redundancy(keys: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    directions = functional.normalize(keys, dim=-1) * counted[:, None, :, None]
    similarity = directions @ directions.transpose(-1, -2)
    others = similarity.sum(-1) - similarity.diagonal(dim1=-2, dim2=-1)
    mean = others / (counted.sum(1)[:, None, None] - 1).clamp_min(1)
    return mean.masked_fill(~counted[:, None], -torch.inf).softmax(-1).mean(1)
