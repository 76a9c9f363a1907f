"""Walk a model layer by layer during one forward pass, giving each layer its excitations on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hal.calls import LayerCall, capture_call
from hal.outputs import hidden_states
from hal.structure import LayerStack
from srdd.excitation import Excitation, excitations


@dataclass(frozen=True)
class Response:
    """What a layer made of one excitation: `output` is its residual stream, [..., hidden], on the device."""

    excitation: Excitation
    output: torch.Tensor


@dataclass
class LayerVisit:
    """One layer while the walk stands at it: its `index` and `site`, the captured `call`, the `output` of the
    model's own forward pass, and `respond`, which runs the layer on an excitation. `notes` says what could not be
    measured.
    """

    index: int
    site: str
    call: LayerCall
    output: torch.Tensor
    runs: float = field(default=0)
    notes: list[str] = field(default_factory=list)

    @property
    def finite_input(self) -> bool:
        """Whether every value of the layer's input is finite."""
        return bool(torch.isfinite(self.call.stream).all())

    @property
    def finite_output(self) -> bool:
        """Whether every value of the layer's output is finite."""
        return bool(torch.isfinite(self.output).all())

    def excitations(self, seed: int, repeats: int) -> Iterator[Excitation]:
        """The inputs derived from this layer's stream and output, one at a time, the first `repeats` that stream."""
        return excitations(self.call.stream, self.output, self.index, seed, repeats)

    def respond(self, excitation: Excitation) -> Response:
        """Run the layer, hooks and faults included, on an excitation."""
        self.runs += 1
        output = hidden_states(self.call.replay(excitation.stream))
        return Response(excitation, output.reshape(excitation.stream.shape))

    def run_part(self, start: int, stop: int, cache: Any, alone: bool = False) -> None:
        """Run the layer on tokens `start` to `stop` of its own stream, or of its first sequence `alone`, with a
        key-value cache for those before.
        """
        call = self.call.first_sequence() if alone else self.call
        self.runs += (stop - start) / self.call.tokens * call.sequences / self.call.sequences
        part = call.part(start, stop, cache)
        part.replay(part.stream)


class Walk:
    """Calls `visit(LayerVisit)` at each layer of `stack` in turn while the model runs forward once; memory
    beyond the model's own is that of one layer's activations. The layers' own results are passed on untouched,
    so what one layer was given never reaches the next. `layer_runs` counts every run of a layer, the model's
    own included.
    """

    def __init__(self, stack: LayerStack, visit: Callable[[LayerVisit], None]) -> None:
        self.layer_runs = 0.0
        self.own_runs = 0
        self.visited: set[int] = set()
        self._stack = stack
        self._visit = visit
        self._probing = False
        self._pending: LayerCall | None = None

    @property
    def forward_equivalents(self) -> float:
        """Runs of layers in units of the model's own forward pass, which may use a layer several times."""
        return self.layer_runs / max(self.own_runs, 1)

    def run(self, forward: Callable[[], Any]) -> None:
        """Walk during `forward()`; every hook is gone when it returns or raises."""
        with self.attached():
            forward()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Walk during whatever forward pass happens in the block; every hook is gone at its end."""
        with ExitStack() as handles:
            for index, layer in enumerate(self._stack.layers):
                handles.callback(layer.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                handles.callback(layer.register_forward_hook(self._after(index)).remove)
            yield

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._probing:
            self._pending = capture_call(layer, args, kwargs)

    def _after(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_layer: nn.Module, _args: Any, output: Any) -> None:
            if self._probing or self._pending is None:
                return
            call, self._pending = self._pending, None
            self.own_runs += 1
            self.layer_runs += 1
            if index in self.visited:  # a layer whose weights are shared is met again: once is enough
                return
            self.visited.add(index)
            self._probing = True
            try:
                stream = hidden_states(output).reshape(call.stream.shape).detach()
                visit = LayerVisit(index, self._stack.site(index), call, stream)
                self._visit(visit)
                self.layer_runs += visit.runs
            finally:
                self._probing = False

        return hook
