"""Centred kernel alignment: do two networks tell the same inputs apart, whatever their widths and coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from hal.errors import UsageError

FEWEST: Final = 4  # the unbiased estimator divides by n - 3
MOST: Final = 2048  # kernel matrices are tokens x tokens; unbiased, the estimate of fewer tokens is as right on average

_LEAST: Final = 1e-12  # of tokens of unit size: below, all are alike


def unbiased_hsic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The unbiased estimator of the Hilbert-Schmidt independence criterion of two symmetric kernel matrices [n, n]
    (Song et al. 2012, Feature Selection via Dependence Maximization, eq. 5). With zero diagonals it is
    (tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)) / (n(n-3)).
    """
    n = first.shape[0]
    first, second = _without_diagonal(first), _without_diagonal(second)
    rows, columns = first.sum(1), second.sum(1)
    trace = (first * second).sum()  # tr(KL)
    cross = rows.sum() * columns.sum() / ((n - 1) * (n - 2))
    return (trace + cross - 2 * (rows * columns).sum() / (n - 2)) / (n * (n - 3))


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Linear CKA (Kornblith et al. 2019, arXiv 1905.00414) of two representations [n, width] of the same n tokens, with
    the unbiased estimator in all three terms, so that a representation agrees with itself by exactly 1 and with
    unrelated ones by 0 in the mean; it may be a little negative. 0 for a representation in which all tokens are alike.
    Raises UsageError for fewer than 4 tokens or different numbers of them.
    """
    if first.shape[0] != second.shape[0] or first.shape[0] < FEWEST:
        raise UsageError(
            f"CKA of {first.shape[0]} and {second.shape[0]} tokens: both need the same tokens, {FEWEST} or more"
        )
    ours, theirs = _gram(first), _gram(second)
    alone = unbiased_hsic(ours, ours).clamp_min(_LEAST) * unbiased_hsic(theirs, theirs).clamp_min(_LEAST)
    return unbiased_hsic(ours, theirs) / alone.sqrt()


def cka_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], counted: torch.Tensor) -> torch.Tensor:
    """1 - CKA, the mean over pairs of layers, each [batch, tokens, width], over the tokens that are `counted` [batch,
    tokens]; of more than `MOST`, over so many evenly spaced ones. Fewer than 4 say nothing: a batch of so few
    contributes 0, and training goes on.
    """
    places = counted.flatten().nonzero().flatten()
    if len(places) < FEWEST:
        return torch.zeros((), device=counted.device)
    if len(places) > MOST:
        places = places[torch.linspace(0, len(places) - 1, MOST).long()]
    pairs = zip(student, teacher, strict=True)
    losses = [1 - linear_cka(ours.flatten(0, 1)[places], theirs.flatten(0, 1)[places]) for ours, theirs in pairs]
    return torch.stack(losses).mean()


def _gram(tokens: torch.Tensor) -> torch.Tensor:
    """The kernel matrix of centred tokens. CKA does not depend on their size: 1 keeps the squares within range."""
    tokens = tokens.float()
    tokens = tokens - tokens.mean(0)
    tokens = tokens / tokens.pow(2).mean().clamp_min(_LEAST).sqrt()
    return tokens @ tokens.T


def _without_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix - torch.diag_embed(matrix.diagonal())
