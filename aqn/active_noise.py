"""The configured noise at the current step: how strong it is at a layer, and from which stream it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from aqn.config import Noise, Phase
from aqn.hits import Hit, Hits
from aqn.hookspecs import Schedule
from aqn.noise import Stream, backward_noise, forward_noise
from aqn.tokens import PassTokens
from hal.module_operators import OperatorCall
from hal.noise import stream_key
from hal.operator_calls import ArgumentRole

# In these, heads lie between batch and token: attention's scores, weights and values.
_HEADS_FIRST = frozenset({"matmul", "bmm", "softmax", "attention"})


class ActiveNoise:
    """`noise` on `layers` while it is in a model: `sigma` is the base strength by the `schedule`, `sigmas` that of each
    layer. `phase()` is the phase that a forward pass now belongs to, `tokens` are those it has.
    """

    def __init__(
        self, noise: Noise, layers: tuple[int, ...], schedule: Schedule, phase: Callable[[], Phase], tokens: PassTokens
    ) -> None:
        self.noise = noise
        self.layers = layers
        self.hits = Hits()
        self.sigma = 0.0
        self.sigmas: dict[int, float] = {}
        self.phase = phase
        self.tokens = tokens
        self._schedule = schedule
        self._step = 0

    def begin(self, step: int) -> None:
        """Take the strengths and streams of a step, counted from 0."""
        self._step = step
        self.sigma = self._schedule(step)
        self.sigmas = {layer: self._schedule(step, layer) * self.noise.scale(layer) for layer in self.layers}

    def strength(self, layer: int, operator: str, phase: Phase | None = None) -> float:
        """Sigma of a layer in a phase (None: the current one), 0 where the phase carries none; a hit is noted."""
        now = phase or self.phase()
        if now not in self.noise.phases:
            return 0.0
        sigma = self.sigmas[layer]
        self.hits.reach(layer, operator)
        if sigma:
            self.hits.counts[Hit(now, layer, operator)] += 1
        return sigma

    def stream(self, layer: int, site: str, operator: str, occurrence: int, *more: str) -> Stream:
        """Where the noise of an operator's call comes from at this step."""
        key = stream_key("aqn", self._step, layer, site, operator, occurrence, *more)
        return Stream(self.noise.seed, key, self.noise.draws)

    def output_stream(self, layer: int) -> Stream:
        """Where the noise of a layer's own output comes from at this step."""
        return self.stream(layer, "", "output", 0)

    def disturb_output(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """A layer's own output with its noise."""
        sigma = self.strength(layer, "output")
        return forward_noise(x, sigma, self.output_stream(layer), self.tokens.rows) if sigma else x


class OperatorNoise:
    """The noise on the operators of one layer, forward and backward, as `hal.hooks` calls it."""

    def __init__(self, active: ActiveNoise, layer: int) -> None:
        self._active = active
        self._layer = layer
        self._backward = "actor_backward" in active.noise.phases

    def argument(self, call: OperatorCall, tensor: torch.Tensor, role: ArgumentRole) -> torch.Tensor:
        """Let the gradient that goes back into this factor carry noise."""
        training = self._backward and self._active.phase() == "actor_forward"
        if not (training and tensor.requires_grad and torch.is_grad_enabled()):
            return tensor
        sigma = self._active.strength(self._layer, call.operator, "actor_backward")
        if not sigma:
            return tensor
        stream = self._active.stream(self._layer, call.site, call.operator, call.occurrence, "backward", role)
        tokens = self._active.tokens.rows if role == "input" else None
        return backward_noise(tensor, sigma, stream, tokens, call.operator in _HEADS_FIRST)

    def result(self, call: OperatorCall, tensor: torch.Tensor) -> torch.Tensor:
        """The operator's result with noise."""
        sigma = self._active.strength(self._layer, call.operator)
        if not sigma:
            return tensor
        stream = self._active.stream(self._layer, call.site, call.operator, call.occurrence)
        if call.first_column:
            stream = replace(stream, first_column=call.first_column)
        tokens = self._active.tokens.rows
        if tokens is not None and call.operator == "linear":
            tokens = tokens.of_product(tensor.shape)
        return forward_noise(tensor, sigma, stream, tokens, call.operator in _HEADS_FIRST)
