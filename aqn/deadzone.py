"""One dead zone for diagnosis, rollout and training, and what noise can do against it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import nn

from aqn.noise import Stream, forward_noise
from aqn.tokens import TokenRows
from hal.errors import HookError, UsageError
from hal.hooks import Hooks
from hal.noise import stream_key
from hal.ops.deadzone import Scope, survivors
from hal.structure import find_layer_stack
from hal.unit_mask import unit_mask

Order = Literal["before", "after"]


class DeadzoneInjector:
    """A dead zone on the output of `layer`: in the share `sparsity` of its hidden units (chosen by `seed`, the same
    for the injector's life) every value below `threshold` times the largest magnitude becomes zero, and its gradient
    with it. `scope` is what the maximum is taken over: the whole "tensor", so that a value's fate depends on the batch
    around it, or each "token".

    With `sigma` above 0 the signal s also carries relative noise n of variance sigma^2 s^2. `noise="before"`: s + n
    meets the dead zone, so a value survives when the sum reaches the threshold. `noise="after"`: the dead zone, then
    noise, then the dead zone again with the same threshold; relative noise on an exact zero is zero, so nothing dead
    comes back. `survival_rate` is the share of would-be-dead values of s that came through, `calls` how often it acted.
    """

    def __init__(
        self,
        layer: int,
        threshold: float = 0.01,
        sparsity: float = 1.0,
        noise: Order = "before",
        scope: Scope = "tensor",
        *,
        sigma: float = 0.0,
        seed: int = 0,
    ) -> None:
        if noise not in ("before", "after"):
            raise UsageError(f"dead-zone noise is '{noise}': choose 'before' or 'after'")
        if not 0 < sparsity <= 1:
            raise UsageError(f"dead-zone sparsity is {sparsity}: give a share of the hidden units, above 0 and up to 1")
        if not (math.isfinite(sigma) and sigma >= 0):
            raise UsageError(f"dead-zone sigma is {sigma}: give a finite number that is not negative")
        survivors(torch.zeros(1), threshold, scope)  # raises for a threshold or scope that there is not
        self.layer, self.threshold, self.sparsity = layer, threshold, sparsity
        self.noise, self.scope, self.sigma, self.seed = noise, scope, sigma, seed
        self.calls = 0
        self.step = 0
        self._dead: torch.Tensor | None = None
        self._revived: torch.Tensor | None = None
        self._masks: dict[tuple[int, torch.device], torch.Tensor] = {}

    def __call__(self, x: torch.Tensor, stream: Stream | None = None, tokens: TokenRows | None = None) -> torch.Tensor:
        """The output that hardware with this dead zone would give for `x`, [..., units]. `stream` and `tokens` say
        which noise to draw, where there is any; by default one of this injector's own seed, layer and step.
        """
        self.calls += 1
        if not x.numel():
            return x
        units = self._units(x)
        alive = survivors(x, self.threshold, self.scope) | ~units
        signal = x if self.noise == "before" or self.sigma == 0 else torch.where(alive, x, 0.0)
        if self.sigma > 0:
            key = stream or Stream(self.seed, stream_key("aqn.deadzone", self.step, self.layer), "exact")
            signal = forward_noise(signal, self.sigma, key, tokens)
        keep = survivors(signal, self.threshold, self.scope) | ~units
        self._count(x, alive, keep, signal)
        return torch.where(keep, signal, 0.0)

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[DeadzoneInjector]:
        """Keep the dead zone on its layer of `model` for the block, for inference and for training alike; it is
        removed completely afterwards, also after an exception. A layer the model does not have is a ModelError, and a
        block in which that layer never ran a HookError.
        """
        stack = find_layer_stack(model)
        site, calls = stack.site(self.layer), self.calls
        with Hooks(model) as hooks:
            hooks.transform(site, self)
            yield self
        if self.calls == calls:
            raise HookError(f"the dead zone on '{site}' never acted: the model did not run that layer in the block")

    @property
    def would_be_dead(self) -> int:
        """How many non-zero values of the signal alone lay in the dead zone."""
        return int(self._dead) if self._dead is not None else 0

    @property
    def survival_rate(self) -> float:
        """The share of would-be-dead values that came through as something else than zero; NaN when there were none."""
        dead = self.would_be_dead
        return int(self._revived) / dead if dead and self._revived is not None else math.nan

    @torch.no_grad()
    def _count(self, x: torch.Tensor, alive: torch.Tensor, keep: torch.Tensor, signal: torch.Tensor) -> None:
        """Add up on the device: a number read at each call would make the host wait for it."""
        dead = ~alive & (x != 0)
        revived = dead & keep & (signal != 0)
        counts = dead.sum(), revived.sum()
        before = self._dead, self._revived
        self._dead, self._revived = (
            new if old is None else new + old.to(new.device) for new, old in zip(counts, before, strict=True)
        )

    def _units(self, x: torch.Tensor) -> torch.Tensor:
        width = int(x.shape[-1])
        if (width, x.device) not in self._masks:
            with torch.inference_mode(False):  # a cached inference tensor would fail later under autograd
                self._masks[width, x.device] = unit_mask(width, self.sparsity, seed=self.seed).to(x.device)
        return self._masks[width, x.device]


class DeadzoneMatMul(torch.autograd.Function):
    """`DeadzoneMatMul.apply(a, b, threshold, sigma=0, stream=None)`: a @ b, with noise of strength `sigma` on the
    product where `stream` names one, and zero where its magnitude is below `threshold` times the largest. The gradient
    is zero exactly where the final output was zeroed, and that of the product elsewhere.
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: torch.Tensor,
        b: torch.Tensor,
        threshold: float = 0.01,
        scope: Scope = "tensor",
        sigma: float = 0.0,
        stream: Stream | None = None,
    ) -> torch.Tensor:
        """Compute the product of `a` [..., M, K] and `b` [..., K, N] as hardware with a dead zone gives it."""
        product = torch.matmul(a, b)
        if sigma > 0:
            if stream is None:
                raise UsageError("DeadzoneMatMul got a sigma and no stream to draw its noise from: pass a Stream")
            product = forward_noise(product, sigma, stream, None)
        keep = survivors(product, threshold, scope)
        ctx.save_for_backward(a, b, keep)
        return torch.where(keep, product, 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of both factors, from the surviving elements alone."""
        a, b, keep = ctx.saved_tensors
        passed = torch.where(keep, gradient, 0.0)
        for_a = torch.matmul(passed, b.mT).sum_to_size(a.shape) if ctx.needs_input_grad[0] else None
        for_b = torch.matmul(a.mT, passed).sum_to_size(b.shape) if ctx.needs_input_grad[1] else None
        return for_a, for_b, None, None, None, None


def survival_probability(ratio: float | torch.Tensor, sigma: float) -> torch.Tensor:
    """The chance, float64, that a value of magnitude `ratio` times the threshold (0 to 1) comes through a dead zone
    after noise of strength `sigma` ("before"): |1 + sigma e| must reach 1 / ratio, e standard normal, so it is
    Phi(-(1/r - 1)/sigma) + Phi(-(1/r + 1)/sigma). It takes the maximum, and so the threshold, to be unmoved by noise.
    """
    r = torch.as_tensor(ratio, dtype=torch.float64)
    if sigma == 0:
        return (r >= 1).to(torch.float64)
    normal = torch.special.ndtr
    return cast(torch.Tensor, normal(-(1 / r - 1) / sigma) + normal(-(1 / r + 1) / sigma))
