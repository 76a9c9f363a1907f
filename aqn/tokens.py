"""Which token each row of an operator's result belongs to, so that its noise depends on the token's place in its own
sequence and not on the batch around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hal.calls import CACHE_ARGUMENTS, token_axis, with_cache_by_name
from hal.errors import HookError


@dataclass(frozen=True)
class TokenRows:
    """The tokens of one forward pass: `batch` sequences of `length` tokens (one sequence where they are packed into a
    single row). `unique` holds the positions that occur, ascending, int64; `place` says for each token [batch, length]
    which of them is its own, None where every sequence has exactly these in order. `first` is the smallest position,
    and `consecutive` says whether none is left out above it.
    """

    batch: int
    length: int
    unique: torch.Tensor
    place: torch.Tensor | None
    first: int
    consecutive: bool

    @property
    def count(self) -> int:
        """Number of tokens."""
        return self.batch * self.length

    def of_product(self, shape: torch.Size) -> TokenRows:
        """The tokens of the rows of a product's result, [..., rows, columns]: these, or all from the beginning of their
        sequences, because latent attention widens anew for each token what its cache holds of those before.
        """
        length = self.first + self.length
        if self.place is not None or len(shape) < 2 or (shape[-2], shape[:-1].numel()) != (length, self.batch * length):
            return self
        return TokenRows(self.batch, length, torch.arange(length, device=self.unique.device), None, 0, True)


def token_rows(positions: torch.Tensor, batch: int) -> TokenRows:
    """Describe `positions`: [length] or [1, length] for `batch` sequences that share them, or [batch, length]."""
    table = positions.reshape(-1, positions.shape[-1]).to(torch.int64)
    rows, length = table.shape
    if rows > 1 and bool((table == table[:1]).all()):
        table = table[:1]
    if rows == 1:
        rows = max(batch, 1)
    if table.shape[0] == 1 and bool((table[0].diff() == 1).all()):
        return TokenRows(rows, length, table[0], None, int(table[0, 0]), True)
    unique, place = torch.unique(table, return_inverse=True)
    first, last = unique[[0, -1]].tolist()
    return TokenRows(rows, length, unique, place.expand(rows, -1), first, last - first == unique.numel() - 1)


class PassTokens:
    """The tokens of the forward pass under way: `rows`, None before the first."""

    def __init__(self) -> None:
        self.rows: TokenRows | None = None
        self._positions: torch.Tensor | None = None

    def read_from(self, layer: int, first: bool) -> Callable[..., None]:
        """What takes them from the arguments of each call of `layer`; `first` says that a pass begins there. A call
        without a floating-point activation is a HookError.
        """

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = kwargs.get("hidden_states")
            if not isinstance(hidden, torch.Tensor):
                hidden = next((v for v in args if isinstance(v, torch.Tensor) and v.is_floating_point()), None)
            if hidden is None:
                raise HookError(f"layer {layer} was called without a floating-point activation: its tokens are unknown")
            positions = layer_positions(module, hidden, args, kwargs, layer)
            batch = int(hidden.shape[0]) if hidden.dim() > 2 else 1
            # Every layer of a pass gets the same tensor; looking into it makes the host wait for the device.
            if first or positions is not self._positions or self.rows is None or self.rows.batch != batch:
                self.rows, self._positions = token_rows(positions, batch), positions

        return note


def layer_positions(
    module: nn.Module, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int
) -> torch.Tensor:
    """The token positions in the arguments of a call of `module`, the layer numbered `layer`, whose hidden states are
    `hidden` ([batch, length, units], or [tokens, units]): `position_ids`, `positions` or `cache_position`, an integer
    tensor passed first (vLLM), and otherwise counted from the length of the layer's key-value cache.
    """
    length = hidden.shape[token_axis(hidden)]
    for value in (kwargs.get("position_ids"), kwargs.get("positions"), kwargs.get("cache_position"), *args[:1]):
        if isinstance(value, torch.Tensor) and _are_positions(value, length):
            return value
    _, named = with_cache_by_name(module, args, kwargs)
    lengths = (getattr(named.get(name), "get_seq_length", None) for name in CACHE_ARGUMENTS)
    cached = next(filter(None, lengths), None)
    past = int(cached(layer)) if cached else 0
    return torch.arange(past, past + length, device=hidden.device)


def _are_positions(value: torch.Tensor, length: int) -> bool:
    if value.is_floating_point() or value.dtype == torch.bool:
        return False
    return value.dim() in (1, 2) and value.shape[-1] == length
