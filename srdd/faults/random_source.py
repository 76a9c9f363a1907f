"""Random numbers of a fault: never the program's own generators."""

from __future__ import annotations

import secrets

import torch


class RandomSource:
    """Draws on the host from a generator of its own, seeded by `seed`, or differently on every run when that is 0."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed((seed or secrets.randbits(63)) & ((1 << 63) - 1))

    def __call__(self, like: torch.Tensor) -> torch.Tensor:
        """Normal numbers of the shape, dtype and device of `like`."""
        return torch.randn(like.shape, generator=self._generator).to(like.device, like.dtype)

    def uniform(self, like: torch.Tensor) -> torch.Tensor:
        """Numbers in [0, 1), float32, of the shape and device of `like`."""
        return torch.rand(like.shape, generator=self._generator).to(like.device)

    def scalar(self) -> float:
        """One number in [0, 1)."""
        return float(torch.rand((), generator=self._generator))
