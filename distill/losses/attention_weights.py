"""How much each token counts in a loss, by the attention it receives."""

from __future__ import annotations

import logging

import torch

from hal.errors import UsageError

_LOG = logging.getLogger(__name__)

_LEAST = 1e-30  # a row of less received no attention


def token_importance(attention: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """The attention that each token receives, [batch, tokens] of mean 1 in each row over the tokens that are `counted`
    [batch, tokens] (None: all), zero elsewhere. From attention weights [batch, heads, queries, tokens] or [batch,
    queries, tokens], or from importances [batch, tokens]; a row without any has all tokens count alike. Mean 1 keeps a
    loss at the size it has without weights. Detached: a loss must not become small by looking away. Raises UsageError
    for other shapes, and for weights that are negative or not finite.
    """
    received = _received(attention.detach().float(), counted)
    counted = torch.ones_like(received) if counted is None else counted.to(received.dtype)
    received = received * counted
    if not bool(((received >= 0) & received.isfinite()).all()):
        raise UsageError("attention weights must be finite and not negative: what was given holds others")
    received = torch.where(received.sum(1, keepdim=True) > _LEAST, received, counted)
    return received * counted.sum(1, keepdim=True) / received.sum(1, keepdim=True).clamp_min(_LEAST)


def _received(attention: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """The sum over queries of the mean over heads; the queries of padding do not count."""
    if attention.dim() == 2:
        return attention
    if attention.dim() == 4:
        attention = attention.mean(1)
    if attention.dim() != 3:
        raise UsageError(
            f"attention weights {list(attention.shape)} are none of [batch, heads, queries, tokens], [batch, queries, "
            "tokens] and [batch, tokens]"
        )
    if counted is not None and attention.shape[1] == attention.shape[2]:
        attention = attention * counted.to(attention.dtype)[:, :, None]
    return attention.sum(1)


class WarmUp:
    """Blends importances in over the first `steps` steps: all tokens count alike at step 0, fully by importance from
    `steps` on. Says so in the log when it begins and when it is over. `source` names whose attention it is.
    """

    def __init__(self, steps: int, source: str) -> None:
        if steps < 0:
            raise UsageError(f"{steps} warm-up steps are negative: give 0 for none")
        self._steps = steps
        self._source = source
        self._said = ""

    def weights(self, importance: torch.Tensor, counted: torch.Tensor, step: int) -> torch.Tensor:
        """`importance` [batch, tokens] as it counts at `step`; its mean stays 1 over the `counted` tokens."""
        share = min(1.0, step / self._steps) if self._steps else 1.0
        self._say("in full" if share >= 1 else f"blended in until step {self._steps}", step)
        return counted + share * (importance - counted)

    def _say(self, what: str, step: int) -> None:
        if what != self._said:
            self._said = what
            _LOG.info("attention of the %s: from step %d %s", self._source, step, what)
