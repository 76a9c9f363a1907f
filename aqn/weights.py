"""Noise in the norms' weights, as QeRL has it, put in and taken out again bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from hal import noise
from hal.errors import HookError
from hal.noise import Mode, stream_key


class WeightNoise:
    """Gaussian noise on `weights` (layer, name, parameter): `apply` puts it in, `restore` takes it out by copying the
    saved weights back, so that nothing is left over and nothing accumulates.
    """

    def __init__(self, weights: Sequence[tuple[int, str, nn.Parameter]], seed: int, mode: Mode) -> None:
        for _, name, weight in weights:
            if type(weight.data).__name__ == "DTensor" or not weight.numel():
                raise HookError(
                    f"the weight '{name}' is sharded: put weight noise into the rollout's copy of the model, or shard "
                    "everything but the norms"
                )
        self._weights = list(weights)
        self._seed, self._mode = seed, mode
        self._held: list[tuple[str, nn.Parameter, torch.Tensor, torch.Tensor]] = []

    @property
    def applied(self) -> bool:
        """Whether noise is in the weights now."""
        return bool(self._held)

    @torch.no_grad()
    def apply(self, step: int, sigma: Callable[[int], float]) -> list[int]:
        """Add sigma(layer) times a standard normal draw of (seed, step, name, element) to every weight, and return the
        layer of each that got noise.
        """
        self.restore()
        hit = []
        for layer, name, weight in self._weights:
            strength = sigma(layer)
            if strength == 0:
                continue
            clean = weight.detach().clone()
            draw = noise.normal(
                weight.shape,
                seed=self._seed,
                stream=stream_key("aqn.weight", step, name),
                device=weight.device,
                mode=self._mode,
            )
            noisy = draw.mul_(strength).add_(clean.float()).to(clean.dtype)
            weight.copy_(noisy)
            self._held.append((name, weight, clean, noisy))
            hit.append(layer)
        return hit

    @torch.no_grad()
    def restore(self) -> None:
        """Put the clean weights back. A weight that someone changed in the meantime (an optimiser's step, newly loaded
        weights) is a HookError: restoring would undo that change, keeping it would let noise accumulate. The others are
        restored first.
        """
        held, self._held = self._held, []
        changed = []
        for name, weight, clean, noisy in held:
            if not torch.equal(weight, noisy):
                changed.append(name)
            else:
                weight.copy_(clean)
        if changed:
            raise HookError(
                f"the weight '{changed[0]}' was changed while noise was in it: leave the noisy phase before an "
                "optimiser's step or new weights"
            )
