"""Record what every module and operator inside a layer was given and returned, as host copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hal.kv_cache import Read, transform_cache
from hal.operators import OPERATORS
from hal.shipped_torch import replacements
from srdd.replay.cache_reads import CacheReads, reads_in, recorded_cache

_SPELLINGS = {function: name for name, functions in OPERATORS.items() for function in functions}


@dataclass
class OperatorCall:
    """One call of a catalogue operator: its `name`, the torch `function` and host copies of what went in and
    came out; `module` is the dotted name, below the layer, of the module that called it.
    """

    name: str
    function: Callable[..., Any]
    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@dataclass
class ModuleCall:
    """One call of a module below (or of) the layer: its dotted `name` below the layer ("" for the layer), host
    copies of arguments and output, and the calls it made in turn. `instead`: what it was given in the place of its
    first argument, which its caller knows nothing of. `stub`: it computed nothing, and returned what it was told to.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    children: list[ModuleCall] = field(default_factory=list)
    operators: list[OperatorCall] = field(default_factory=list)
    instead: torch.Tensor | None = None
    stub: bool = False

    @property
    def cache(self) -> CacheReads | None:
        """What it stored in its key-value cache and read there; None where it was given none."""
        return reads_in([*self.args, *self.kwargs.values()])

    @property
    def altered(self) -> bool:
        """Whether it made of its arguments, or returned, what its caller would not expect."""
        return self.stub or self.instead is not None

    def walk(self) -> Iterator[ModuleCall]:
        """The call itself and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def compared(self, args: Any, kwargs: Any) -> list[torch.Tensor]:
        """Of the arguments of such a call, the tensors that its caller answers for."""
        return [*tensors_in(args), *tensors_in(kwargs)]

    def handed(self) -> list[torch.Tensor]:
        """Those of this call."""
        return self.compared(self.args, self.kwargs)


@contextmanager
def record(layer: nn.Module) -> Iterator[list[ModuleCall]]:
    """Record every call of `layer` during the block as a tree; the list holds one tree a call. Hooks attached
    here run after those already there, so what is recorded is what the rest of the model saw.
    """
    recorder = _Recorder()
    with ExitStack() as handles:
        handles.enter_context(transform_cache(layer, recorder.access))
        for name, module in layer.named_modules():
            handles.callback(module.register_forward_pre_hook(recorder.enter(name), with_kwargs=True).remove)
            handles.callback(module.register_forward_hook(recorder.leave, always_call=True).remove)
        yield recorder.trees


class _Recorder:
    def __init__(self) -> None:
        self.trees: list[ModuleCall] = []
        self._open: list[ModuleCall] = []
        self._modes: list[ExitStack] = []
        self._inside_operator = False
        self._replacements = replacements()

    def enter(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = tuple(map(recorded_cache, args)), {key: recorded_cache(value) for key, value in kwargs.items()}
            call = ModuleCall(name, *host_copy(given))
            (self._open[-1].children if self._open else self.trees).append(call)
            self._open.append(call)
            # A mode for each module: a fault's own mode, entered by an earlier hook, must lie below ours.
            self._modes.append(ExitStack())
            self._modes[-1].enter_context(_OperatorRecorder(self))

        return hook

    def leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._modes.pop().close()
        self._open.pop().output = host_copy(output)

    def access(self, stored: Read, returned: Read) -> Read:
        own, read = host_copy((stored, returned))
        caches = [call.cache for call in self._open]
        for cache in filter(None, caches):
            cache.returned.append(read)
        if caches[-1] is not None:
            caches[-1].stored += own
        return returned

    def operator(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        function = self._replacements.get(function, function)
        name = _SPELLINGS.get(function)
        if name is None or self._inside_operator or not self._open:
            return function(*args, **kwargs)
        given = host_copy(args), host_copy(kwargs)
        self._inside_operator = True
        try:
            result = function(*args, **kwargs)
        finally:
            self._inside_operator = False
        caller = self._open[-1]
        caller.operators.append(OperatorCall(name, function, caller.name, *given, host_copy(result)))
        return result


class _OperatorRecorder(TorchFunctionMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._recorder.operator(func, args, kwargs or {})


def as_batch(calls: Sequence[ModuleCall]) -> ModuleCall | None:
    """Calls of one module as a single one on all that they were given; None where the module has parts, or they were
    given anything but one tensor of the same shape.
    """
    inputs = [call.args[0] for call in calls if len(call.args) == 1 and not call.kwargs and not call.children]
    outputs = [call.output for call in calls]
    if len(inputs) < len(calls) or not all(isinstance(value, torch.Tensor) for value in [*inputs, *outputs]):
        return None
    if len({(x.shape, y.shape) for x, y in zip(inputs, outputs, strict=True)}) > 1 or inputs[0].dim() < 2:
        return None
    return replace(calls[0], args=(torch.cat(inputs),), output=torch.cat(outputs), operators=[])


def host_copy(value: Any) -> Any:
    """`value` with every tensor in it detached and copied to the host, in its own dtype."""
    return map_tensors(value, lambda tensor: tensor.detach().to("cpu", copy=True))


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Apply `function` to every tensor in nested tuples, lists and dicts, and to what is read from a recorded cache
    when it is read; anything else is kept as it is.
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, CacheReads):
        return value.changed(function)
    if isinstance(value, dict):
        entries = {key: map_tensors(item, function) for key, item in value.items()}
        # transformers' ModelOutput keeps its kind.
        return type(value)(**entries) if hasattr(value, "to_tuple") else entries
    if type(value) in (tuple, list):
        return type(value)(map_tensors(item, function) for item in value)
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The floating-point tensors in nested tuples, lists and dicts, in order; complex ones as pairs of numbers."""
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> None:
        if tensor.is_complex():
            found.append(torch.view_as_real(tensor))
        elif tensor.is_floating_point():
            found.append(tensor)

    map_tensors(value, keep)
    return found


def where_given(value: Any, pattern: Any) -> Any:
    """`value` without what `pattern`, another such nest, has None for."""
    if pattern is None:
        return None
    if isinstance(value, (tuple, list)) and isinstance(pattern, (tuple, list)) and len(value) == len(pattern):
        return [where_given(own, other) for own, other in zip(value, pattern, strict=True)]
    return value
