"""Put noise and a dead zone into a model for the length of a `with` block."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from aqn.config import PHASES, AqnConfig, Noise, Phase
from aqn.deadzone import DeadzoneInjector
from aqn.noise import Stream, backward_noise, forward_noise
from aqn.tokens import TokenRows, layer_positions, token_rows
from aqn.weights import WeightNoise
from hal.backend import TorchBackend
from hal.errors import HookError, UsageError
from hal.hooks import Hooks
from hal.module_operators import OperatorCall, module_operator
from hal.noise import stream_key
from hal.operator_calls import ArgumentRole
from hal.registry import get_backend
from hal.structure import find_layer_stack

# In these, heads lie between batch and token: attention's scores, weights and values.
_HEADS_FIRST = frozenset({"matmul", "bmm", "softmax", "attention"})


class Hit(NamedTuple):
    """What `Injection.counts` counts by: the phase, the layer and the operator ("output" for a layer's own output,
    "weight" for a norm's weight).
    """

    phase: str
    layer: int
    operator: str


class Injection:
    """Noise and dead zone while they are in a model: what `aqn.inject` yields.

    `step` is the current step, counted from 0: setting it sets `sigma`, the base strength by the schedule, and
    `sigmas`, that of each layer. `phase` is the current phase; None, the default, means "actor_forward" while the model
    is in training mode and "validation" otherwise. `counts` says how often each `Hit` was disturbed, `deadzone` is the
    injector of the configured dead zone.
    """

    def __init__(
        self,
        model: nn.Module,
        config: AqnConfig,
        steps: int | None = None,
        epochs: int | None = None,
    ) -> None:
        self.config = config
        self.counts: Counter[Hit] = Counter()
        self.sigmas: dict[int, float] = {}
        self.sigma = 0.0
        self.deadzone: DeadzoneInjector | None = None
        self._model = model
        self._stack = find_layer_stack(model)
        self._hooks = Hooks(model)
        self._life = ExitStack()
        self._noise = config.noise
        self._phase: Phase | None = None
        self._step = 0
        self._tokens: TokenRows | None = None
        self._positions: torch.Tensor | None = None
        self._reached: set[tuple[int, str]] = set()
        self._weights: WeightNoise | None = None
        self._layers: tuple[int, ...] = ()
        self._schedule = None
        if self._noise is not None:
            wanted = self._noise.layers_of(len(self._stack))
            self._schedule = self._noise.make_schedule(steps, epochs, len(self._stack))
            # A pipeline stage carries the noise of the layers it holds.
            self._layers = tuple(layer for layer in wanted if layer in self._stack.present)
            self._noise = self._noise if self._layers else None
        self._zone = config.dead_zone
        if self._zone is not None:
            self._stack.site(self._zone.layer)  # raises for a layer that the model does not have
            if self._zone.layer not in self._stack.present:
                self._zone = None

    # -- steps and phases ---------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The current step, counted from 0."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._restore_weights()
        self._step = step
        if self._schedule is not None:
            self.sigma = self._schedule(step)
        if self._noise is not None and self._schedule is not None:
            schedule, noise = self._schedule, self._noise
            self.sigmas = {layer: schedule(step, layer) * noise.scale(layer) for layer in self._layers}
        if self.deadzone is not None:
            self.deadzone.step = step
        self._apply_weights()

    @property
    def phase(self) -> Phase:
        """The phase that a forward pass now belongs to."""
        if self._phase is not None:
            return self._phase
        return "actor_forward" if self._model.training else "validation"

    @phase.setter
    def phase(self, phase: Phase | None) -> None:
        if phase is not None and phase not in PHASES:
            raise UsageError(f"unknown phase '{phase}': choose one of {', '.join(PHASES)}, or None for automatic")
        self._restore_weights()
        self._phase = phase
        self._apply_weights()

    @contextmanager
    def during(self, phase: Phase) -> Iterator[Injection]:
        """Work in `phase` for the block, then go back to the phase before."""
        before = self._phase
        self.phase = phase
        try:
            yield self
        finally:
            self.phase = before

    # -- life ---------------------------------------------------------------------------------------

    def __enter__(self) -> Injection:
        """Attach everything; step 0 begins."""
        _tell_of_compiled(self._model)
        with ExitStack() as life:
            life.enter_context(self._hooks)
            # A compiled graph would leave hooks out in silence, or break at each.
            life.enter_context(torch.compiler.set_stance("force_eager"))
            self._attach()
            life.callback(self._restore_weights)
            self.step = 0
            self._life = life.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Remove everything. Without an exception on its way, check that noise was where it was asked for."""
        self.detach()
        if error is None:
            self.require_hits()

    def detach(self) -> None:
        """Remove everything, and ask nothing."""
        self._life.close()

    def require_hits(self) -> None:
        """Raise HookError when a layer that should carry noise never ran one of the operators, when an operator that
        was listed by name never ran, or when the dead zone never acted: a noise that matches nothing must not pass for
        one that does no harm.
        """
        if self.deadzone is not None and not self.deadzone.calls:
            raise HookError(
                f"the dead zone on layer {self.deadzone.layer} never acted: the model did not run in the block"
            )
        if self._noise is None:
            return
        where = ", ".join(self._noise.phases)
        if not self._reached:
            hint = " (weight noise needs a phase set by during())" if self._noise.kind == "weight" else ""
            raise HookError(f"noise hit nothing: no layer ran in the phases {where}{hint}; check phases and layers")
        missed = [layer for layer in self._layers if not any(at == layer for at, _ in self._reached)]
        if missed:
            wanted = ", ".join(self._noise.chosen_operators) if self._noise.kind == "operator" else self._noise.kind
            raise HookError(
                f"noise never hit layer {missed[0]} (and {len(missed) - 1} more): no {wanted} ran there in the phases "
                f"{where}; choose operators that the model runs"
            )
        silent = [name for name in self._noise.operators or () if not any(hit == name for _, hit in self._reached)]
        if silent:
            raise HookError(f"operator '{silent[0]}' was asked for by name and never ran: leave it out")

    # -- attaching ----------------------------------------------------------------------------------

    def _attach(self) -> None:
        noise, zone = self._noise, self._zone
        sites = sorted({*self._layers, *([zone.layer] if zone else [])})
        for layer in sites:
            self._hooks.observe_arguments(self._stack.site(layer), self._note_tokens(layer))
        if noise is not None and noise.kind == "operator":
            for layer in self._layers:
                handler = _LayerNoise(self, noise, layer)
                self._hooks.handle_operators(self._stack.site(layer), noise.chosen_operators, handler)
        elif noise is not None and noise.kind == "layer":
            for layer in self._layers:
                if zone is None or layer != zone.layer:
                    self._hooks.transform(self._stack.site(layer), self._output_noise(layer))
        elif noise is not None:
            self._weights = WeightNoise(self._norms(noise), noise.seed, noise.draws)
        if zone is not None:
            options = zone.model_dump(exclude={"enabled"})
            self.deadzone = DeadzoneInjector(**options)
            self._hooks.transform(self._stack.site(zone.layer), self._dead_output)

    def _note_tokens(self, layer: int) -> Any:
        first = layer == min((*self._layers, *([self._zone.layer] if self._zone else [])))

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = kwargs.get("hidden_states")
            if not isinstance(hidden, torch.Tensor):
                hidden = next((v for v in args if isinstance(v, torch.Tensor) and v.is_floating_point()), None)
            if hidden is None:
                raise HookError(f"layer {layer} was called without a floating-point activation: its tokens are unknown")
            positions = layer_positions(hidden, args, kwargs, layer)
            batch = int(hidden.shape[0]) if hidden.dim() > 2 else 1
            known = self._tokens
            # Every layer of a pass gets the same tensor; looking into it makes the host wait for the device.
            if first or positions is not self._positions or known is None or known.batch != batch:
                self._tokens, self._positions = token_rows(positions, batch), positions

        return note

    def _norms(self, noise: Noise) -> list[tuple[int, str, nn.Parameter]]:
        found = []
        for layer in self._layers:
            for name, module in self._stack.layers[layer].named_modules():
                weight = getattr(module, "weight", None)
                if module_operator(module) == "rms_norm" and isinstance(weight, nn.Parameter):
                    found.append((layer, f"{layer}.{name}", weight))
        if not found:
            raise HookError("weight noise found no RMSNorm in the chosen layers: it belongs to models that have them")
        return found

    # -- acting -------------------------------------------------------------------------------------

    def _output_noise(self, layer: int) -> Any:
        def disturb(x: torch.Tensor) -> torch.Tensor:
            sigma = self._strength(layer, self.phase, "output")
            return forward_noise(x, sigma, self._stream(layer, "", "output", 0), self._tokens) if sigma else x

        return disturb

    def _dead_output(self, x: torch.Tensor) -> torch.Tensor:
        zone = cast(DeadzoneInjector, self.deadzone)
        noisy = self._noise is not None and self._noise.kind == "layer" and zone.layer in self._layers
        zone.sigma = self._strength(zone.layer, self.phase, "output") if noisy else 0.0
        return zone(x, self._stream(zone.layer, "", "output", 0) if zone.sigma else None, self._tokens)

    def _strength(self, layer: int, phase: Phase, operator: str) -> float:
        """Sigma of a layer in a phase, 0 where the phase carries none; what it finds is counted."""
        noise = cast(Noise, self._noise)
        if phase not in noise.phases:
            return 0.0
        self._reached.add((layer, operator))
        sigma = self.sigmas[layer]
        if sigma:
            self.counts[Hit(phase, layer, operator)] += 1
        return sigma

    def _stream(self, layer: int, site: str, operator: str, occurrence: int, *more: str) -> Stream:
        noise = cast(Noise, self._noise)
        key = stream_key("aqn", self._step, layer, site, operator, occurrence, *more)
        return Stream(noise.seed, key, noise.draws)

    def _apply_weights(self) -> None:
        if self._weights is None or self._phase is None or self._noise is None:
            return
        if self._phase in self._noise.phases:
            self._reached.update((layer, "weight") for layer in self._layers)
            for layer in self._weights.apply(self._step, self.sigmas.__getitem__):
                self.counts[Hit(self._phase, layer, "weight")] += 1

    def _restore_weights(self) -> None:
        if self._weights is not None:
            self._weights.restore()


class _LayerNoise:
    """The operator noise of one layer, as `hal.hooks` calls it."""

    def __init__(self, injection: Injection, noise: Noise, layer: int) -> None:
        self._injection = injection
        self._noise = noise
        self._layer = layer
        self._backward = "actor_backward" in noise.phases

    def argument(self, call: OperatorCall, tensor: torch.Tensor, role: ArgumentRole) -> torch.Tensor:
        """Let the gradient that goes back into this factor carry noise."""
        injection = self._injection
        training = self._backward and injection.phase == "actor_forward"
        if not (training and tensor.requires_grad and torch.is_grad_enabled()):
            return tensor
        sigma = injection._strength(self._layer, "actor_backward", call.operator)
        if not sigma:
            return tensor
        stream = injection._stream(self._layer, call.site, call.operator, call.occurrence, "backward", role)
        tokens = injection._tokens if role == "input" else None
        return backward_noise(tensor, sigma, stream, tokens, call.operator in _HEADS_FIRST)

    def result(self, call: OperatorCall, tensor: torch.Tensor) -> torch.Tensor:
        """The operator's result with noise."""
        injection = self._injection
        sigma = injection._strength(self._layer, injection.phase, call.operator)
        if not sigma:
            return tensor
        stream = injection._stream(self._layer, call.site, call.operator, call.occurrence)
        if call.first_column:
            stream = replace(stream, first_column=call.first_column)
        return forward_noise(tensor, sigma, stream, injection._tokens, call.operator in _HEADS_FIRST)


def inject(
    model: nn.Module,
    config: AqnConfig,
    backend: str | TorchBackend | None = None,
    *,
    steps: int | None = None,
    epochs: int | None = None,
) -> Injection:
    """Noise and dead zone of `config` in `model`, as a context manager that yields an `Injection`. `backend` must be
    the one the model is on (None: wherever it is). `steps` and `epochs` tell schedules how long the run is. The model
    may be wrapped by DDP or FSDP, use autocast and gradient checkpointing (whose second pass draws the same noise and
    counts again). `torch.compile` and noise exclude each other: inside the block everything compiled runs eagerly.
    Raises UsageError for a layer, phase or schedule that does not fit, and HookError at the end of the block when noise
    hit nothing.
    """
    if backend is not None:
        (get_backend(backend) if isinstance(backend, str) else backend).for_model(model)
    return Injection(model, config, steps, epochs)


def _tell_of_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod"):
            warnings.warn(
                f"the module '{name or type(module).__name__}' is compiled: it runs eagerly while noise is in it",
                stacklevel=3,
            )
            return
