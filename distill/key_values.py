"""The keys and values that one attention layer computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hal.errors import UsageError


@dataclass(frozen=True)
class KeyValues:
    """`keys` and `values` of one layer, each [batch, heads, tokens, head size]; the head sizes may differ. Raises
    UsageError for other shapes.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __post_init__(self) -> None:
        if self.keys.dim() != 4 or self.keys.shape[:3] != self.values.shape[:3]:
            raise UsageError(
                f"keys {list(self.keys.shape)} and values {list(self.values.shape)} are not [batch, heads, tokens, "
                "size] of one layer"
            )

    @property
    def tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values a token: [batch, tokens, heads * head size] each."""
        return merge_heads(self.keys), merge_heads(self.values)


def merge_heads(tensor: torch.Tensor) -> torch.Tensor:
    """[batch, heads, tokens, size] as [batch, tokens, heads * size]."""
    return tensor.transpose(1, 2).flatten(2)
