"""Run one part of a model in another precision, or on the host, while the rest stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from hal.calls import activation, moved
from hal.errors import ModelError
from hal.hooks import parts_of
from hal.model_weights import WeightSource
from hal.operators import OPERATORS, ModeScope, require_operator
from hal.structure import dotted

_HOST = torch.device("cpu")
_on_host: ContextVar[int] = ContextVar("_on_host", default=0)


def on_host() -> bool:
    """Whether the code that asks runs in a part of a model that a detour has taken from the device to the host. A
    simulated fault asks this: it belongs to the device.
    """
    return _on_host.get() > 0


@dataclass
class Detour:
    """A detour while it lasts: how many `calls` took it."""

    calls: int = 0


@contextmanager
def detour(
    model: nn.Module,
    site: str,
    operator: str = "",
    *,
    dtype: torch.dtype = torch.float32,
    host: bool = False,
    weights: WeightSource | None = None,
) -> Iterator[Detour]:
    """Within the block, run the module `site` of `model` (a layer, or a part of one) in `dtype`, on its own device or
    on the host: what goes in is cast there, what comes out is cast back. Its parameters are replaced by those of
    `weights`, of a checkpoint for example, or by casts of its own. With `operator`, the calls of that operator inside
    the module, or a part of it that runs alone, are what takes the detour, with the operands they are given. Hooks on
    the module and inside it run as ever and see what is computed in `dtype`. Afterwards, also after an exception, the
    model is as before, to the very parameter. Raises HookError for a site or operator that does not exist and
    ModelError for quantised parameters.
    """
    module, *inner = parts_of(model, site)
    taken = Detour()
    road = _Road(dtype, host, taken)
    with ExitStack() as restore:
        restore.callback(_on_host.reset, _on_host.set(_on_host.get()))
        if operator:
            require_operator(operator)
            for handle in ModeScope(_OperatorDetour(operator, road)).attach([module, *inner]):
                restore.callback(handle.remove)
        else:
            restore.callback(_ModuleDetour(module, road).remove)
            _replace_parameters(module, site, road, weights, restore)
        yield taken


@dataclass(frozen=True)
class _Road:
    """Where values are taken: `there` to compute, and back home."""

    dtype: torch.dtype
    host: bool
    taken: Detour

    def there(self, value: Any, device: torch.device) -> Any:
        return moved(value, _HOST if self.host else device, self.dtype)

    @contextmanager
    def computing(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()

    def start(self) -> None:
        self.taken.calls += 1
        _on_host.set(_on_host.get() + self.host)

    def stop(self) -> None:
        _on_host.set(_on_host.get() - self.host)


class _ModuleDetour:
    """The two casts around a module, as hooks: the first of all before it, the last of all behind it."""

    def __init__(self, module: nn.Module, road: _Road) -> None:
        self._road = road
        self._fallback = next(module.parameters(), torch.empty(0))
        self._before = module.register_forward_pre_hook(self._leave, prepend=True, with_kwargs=True)
        self._behind: RemovableHandle | None = None

    def remove(self) -> None:
        self._before.remove()
        if self._behind is not None:
            self._behind.remove()

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given = activation(args, kwargs)
        home = self._fallback if given is None else given
        if self._behind is not None:
            self._behind.remove()
        # Anew at each call, and so behind every hook attached in the meantime; always, because it also counts.
        self._behind = module.register_forward_hook(partial(self._return, home.device, home.dtype), always_call=True)
        self._road.start()
        return self._road.there(args, home.device), self._road.there(kwargs, home.device)

    def _return(self, device: torch.device, dtype: torch.dtype, _module: nn.Module, _args: Any, output: Any) -> Any:
        self._road.stop()
        return moved(output, device, dtype)


class _OperatorDetour(TorchFunctionMode):
    def __init__(self, operator: str, road: _Road) -> None:
        super().__init__()
        self._spellings = OPERATORS[operator]
        self._road = road

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        home = activation(args, given)
        if func not in self._spellings or home is None:
            return func(*args, **given)
        with self._road.computing():
            result = func(*self._road.there(args, home.device), **self._road.there(given, home.device))
        return moved(result, home.device, home.dtype)


def _replace_parameters(
    module: nn.Module, site: str, road: _Road, weights: WeightSource | None, restore: ExitStack
) -> None:
    for prefix, part in module.named_modules():
        place = dotted(site, prefix)
        for name, parameter in list(part.named_parameters(recurse=False)):
            clean = _clean(f"{place}.{name}", parameter, weights)
            wide = nn.Parameter(road.there(clean, parameter.device), requires_grad=False)
            restore.callback(setattr, part, name, parameter)
            setattr(part, name, wide)
        for name, buffer in list(part.named_buffers(recurse=False)):
            restore.callback(setattr, part, name, buffer)
            setattr(part, name, road.there(buffer, buffer.device))


def _clean(name: str, parameter: nn.Parameter, weights: WeightSource | None) -> torch.Tensor:
    if not parameter.is_floating_point() or parameter.element_size() == 1:
        raise ModelError(
            f"parameter '{name}' is quantised ({str(parameter.dtype).removeprefix('torch.')}): it has no other "
            "precision to run in; name a module that is not"
        )
    stored = weights.tensor(name) if weights else None
    return parameter.detach() if stored is None or stored.shape != parameter.shape else stored
