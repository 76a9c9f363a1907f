"""Record the model's own forward pass outside its layers, as host copies; of the layers only what joins them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hal.calls import activation
from hal.outputs import hidden_states
from hal.structure import LayerStack
from srdd.replay.capture import ModuleCall, host_copy, map_tensors


@dataclass
class LayerBoundary(ModuleCall):
    """One call of layer `index`, seen from outside: `args` holds its residual stream where that is not, untouched,
    what the layer before returned, and nothing where it is. `output` is NaN of the same shapes where nobody but the
    next layer was handed it, so that no copy of it is kept.
    """

    index: int = 0

    def compared(self, args: Any, kwargs: Any) -> list[torch.Tensor]:
        """The residual stream alone: masks and positions are made differently for the host."""
        stream = activation(tuple(args), kwargs) if self.args else None
        return [] if stream is None else [stream]


@contextmanager
def record_outside(owner: nn.Module, stack: LayerStack) -> Iterator[list[ModuleCall]]:
    """Record every call of `owner` during the block as a tree that ends at the layers of `stack`. Hooks attached here
    run after those already there; what happens while a layer runs is not recorded.
    """
    recorder = _Recorder()
    inside = {id(module) for layer in stack.layers for module in layer.modules()}
    numbers = {id(layer): index for index, layer in enumerate(stack.layers)}
    with ExitStack() as handles:
        for name, module in owner.named_modules():
            if id(module) in numbers:
                enter, leave = recorder.enter_layer(name, numbers[id(module)]), recorder.leave_layer
            elif id(module) not in inside:
                enter, leave = recorder.enter(name), recorder.leave
            else:
                continue
            handles.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            handles.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield recorder.trees


PreHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


@dataclass
class _Returned:
    """What the last layer returned: the `output`, a `copy` of it, and its residual `stream` as it was then."""

    call: LayerBoundary
    output: Any
    copy: Any
    stream: torch.Tensor
    version: int


class _Recorder:
    def __init__(self) -> None:
        self.trees: list[ModuleCall] = []
        self._open: list[ModuleCall] = []
        self._layers = 0  # how many layer calls are open: a probe runs a layer again inside its own call
        self._returned: _Returned | None = None
        self._copies: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}

    def enter(self, name: str) -> PreHook:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._layers:
                return
            self._settle(None)
            call = ModuleCall(name, self._copied(args), self._copied(kwargs))
            (self._open[-1].children if self._open else self.trees).append(call)
            self._open.append(call)

        return hook

    def leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if not self._layers:
            self._settle(None)
            self._open.pop().output = self._copied(output)

    def enter_layer(self, name: str, index: int) -> PreHook:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._layers += 1
            if self._layers > 1 or not self._open:
                return
            stream = activation(args, kwargs)
            untouched = self._settle(stream)
            call = LayerBoundary(name, () if untouched or stream is None else (self._copied(stream),), {}, index=index)
            self._open[-1].children.append(call)

        return hook

    def leave_layer(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._layers -= 1
        if self._layers or not self._open:
            return
        call = self._open[-1].children[-1]
        if isinstance(call, LayerBoundary) and output is not None:
            stream = hidden_states(output)
            # Copied at once: what is done to it in place on its way to the next layer must show.
            self._returned = _Returned(call, output, host_copy(output), stream, _version(stream))

    def _settle(self, stream: torch.Tensor | None) -> bool:
        """Keep what the last layer returned, unless `stream`, which the next one is given, is just that."""
        if self._returned is None:
            return False
        last, self._returned = self._returned, None
        if stream is last.stream and _version(stream) == last.version:
            last.call.output = map_tensors(last.output, _placeholder)
            return True
        last.call.output = last.copy
        self._copies[id(last.stream)] = (last.stream, last.version, hidden_states(last.copy))
        return False

    def _copied(self, value: Any) -> Any:
        """Host copies; one and the same for one and the same tensor, so that what is only passed on shows."""
        return map_tensors(value, self._copy)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        known = self._copies.get(id(tensor))
        if known is not None and known[0] is tensor and known[1] == _version(tensor):
            return known[2]
        copied = tensor.detach().to("cpu", copy=True)
        self._copies[id(tensor)] = (tensor, _version(tensor), copied)
        return copied


def _placeholder(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.detach().to("cpu", copy=True)
    return torch.full((1,), torch.nan, dtype=tensor.dtype).expand(tensor.shape)


def _version(tensor: torch.Tensor) -> int:
    """How often the tensor was changed in place; one made in inference mode never is, outside of it."""
    return 0 if tensor.is_inference() else tensor._version
