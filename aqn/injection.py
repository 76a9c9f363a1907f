"""Put noise and a dead zone into a model for the length of a `with` block."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from aqn.active_noise import ActiveNoise, OperatorNoise
from aqn.config import PHASES, AqnConfig, Noise, Phase
from aqn.deadzone import DeadzoneInjector
from aqn.hits import Hit
from aqn.tokens import PassTokens
from aqn.weights import WeightNoise
from hal.backend import TorchBackend
from hal.errors import HookError, UsageError
from hal.hooks import Hooks
from hal.module_operators import module_operator
from hal.registry import get_backend
from hal.structure import find_layer_stack


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
        self.deadzone: DeadzoneInjector | None = None
        self._model = model
        self._stack = find_layer_stack(model)
        self._hooks = Hooks(model)
        self._life = ExitStack()
        self._phase: Phase | None = None
        self._step = 0
        self._tokens = PassTokens()
        self._weights: WeightNoise | None = None
        self._noise = self._active_noise(config.noise, steps, epochs)
        self._zone = config.dead_zone
        if self._zone is not None:
            self._stack.site(self._zone.layer)  # raises for a layer that the model does not have
            if self._zone.layer not in self._stack.present:
                self._zone = None

    def _active_noise(self, noise: Noise | None, steps: int | None, epochs: int | None) -> ActiveNoise | None:
        if noise is None:
            return None
        depth = len(self._stack)
        wanted, schedule = noise.layers_of(depth), noise.make_schedule(steps, epochs, depth)
        # A pipeline stage carries the noise of the layers it holds.
        layers = tuple(layer for layer in wanted if layer in self._stack.present)
        return ActiveNoise(noise, layers, schedule, lambda: self.phase, self._tokens)

    @property
    def counts(self) -> Counter[Hit]:
        """How often each `Hit` was disturbed."""
        return self._noise.hits.counts if self._noise is not None else Counter()

    @property
    def sigma(self) -> float:
        """The base strength at this step."""
        return self._noise.sigma if self._noise is not None else 0.0

    @property
    def sigmas(self) -> dict[int, float]:
        """The strength of each layer at this step."""
        return self._noise.sigmas if self._noise is not None else {}

    # -- steps and phases ---------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The current step, counted from 0."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._restore_weights()
        self._step = step
        if self._noise is not None:
            self._noise.begin(step)
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
        if self._noise is not None and self._noise.layers:
            self._noise.hits.require(self._noise.noise, self._noise.layers)

    # -- attaching ----------------------------------------------------------------------------------

    def _attach(self) -> None:
        zone = self._zone
        noisy = self._noise.layers if self._noise is not None else ()
        sites = sorted({*noisy, *([zone.layer] if zone else [])})
        for layer in sites:
            self._hooks.observe_arguments(self._stack.site(layer), self._tokens.read_from(layer, layer == sites[0]))
        if self._noise is not None and noisy:
            self._attach_noise(self._noise)
        if zone is not None:
            options = zone.model_dump(exclude={"enabled"})
            self.deadzone = DeadzoneInjector(**options)
            self._hooks.transform(self._stack.site(zone.layer), self._dead_output)

    def _attach_noise(self, active: ActiveNoise) -> None:
        noise = active.noise
        if noise.kind == "weight":
            self._weights = WeightNoise(self._norms(active.layers), noise.seed, noise.draws)
            return
        for layer in active.layers:
            site = self._stack.site(layer)
            if noise.kind == "operator":
                self._hooks.handle_operators(site, noise.chosen_operators, OperatorNoise(active, layer))
            elif self._zone is None or layer != self._zone.layer:
                self._hooks.transform(site, partial(active.disturb_output, layer))

    def _norms(self, layers: Sequence[int]) -> list[tuple[int, str, nn.Parameter]]:
        found = []
        for layer in layers:
            for name, module in self._stack.layers[layer].named_modules():
                weight = getattr(module, "weight", None)
                if module_operator(module) == "rms_norm" and isinstance(weight, nn.Parameter):
                    found.append((layer, f"{layer}.{name}", weight))
        if not found:
            raise HookError("weight noise found no RMSNorm in the chosen layers: it belongs to models that have them")
        return found

    # -- acting -------------------------------------------------------------------------------------

    def _dead_output(self, x: torch.Tensor) -> torch.Tensor:
        zone, noise = cast(DeadzoneInjector, self.deadzone), self._noise
        if noise is None or noise.noise.kind != "layer" or zone.layer not in noise.layers:
            return zone(x, None, self._tokens.rows)
        zone.sigma = noise.strength(zone.layer, "output")
        return zone(x, noise.output_stream(zone.layer) if zone.sigma else None, self._tokens.rows)

    def _apply_weights(self) -> None:
        if self._weights is None or self._phase is None or self._noise is None:
            return
        if self._phase in self._noise.noise.phases:
            disturbed = self._weights.apply(self._step, self._noise.sigmas.__getitem__)
            for layer in self._noise.layers:
                self._noise.hits.reach(layer, "weight")
            self.counts.update(Hit(self._phase, layer, "weight") for layer in disturbed)

    def _restore_weights(self) -> None:
        if self._weights is not None:
            self._weights.restore()


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
