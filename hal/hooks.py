"""Attach observers and transforms to layers, submodules and operators; always restore the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import nn

from hal.errors import HookError
from hal.operator_calls import CallHandler, OperatorCalls
from hal.operators import OperatorScope, require_operator
from hal.outputs import Role, hidden_states, with_hidden_states
from hal.structure import enclosing

TensorFunction = Callable[[torch.Tensor], torch.Tensor]
CallObserver = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
ArgumentObserver = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


class Hooks:
    """A set of hooks on one model, active inside its `with` block and removed at its end, also after an
    exception.

    Sites are dotted module names ("model.layers.3", "model.layers.3.mlp.down_proj"). Hooks on one site run in
    the order in which they were attached, each seeing what the one before it returned. `counts` says how often
    the hooks of each site ran, an operator's under "SITE:OPERATOR".
    """

    def __init__(self, model: nn.Module) -> None:
        self.counts: Counter[str] = Counter()
        self._model = model
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        self._scopes: dict[tuple[str, bool], OperatorScope] = {}
        self._handles = ExitStack()
        self._ended = False

    def __enter__(self) -> Hooks:
        """Return the set; hooks attached before or inside the block are removed when it ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove every hook of this set."""
        self._ended = True
        self._handles.close()

    def observe(self, site: str, callback: Callable[[torch.Tensor], None], role: Role = "layer") -> None:
        """Call `callback` with the hidden states that the module at `site` returns."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self.counts[site] += 1
            callback(hidden_states(output, role))

        self._keep(self.module(site).register_forward_hook(hook))

    def observe_calls(self, site: str, callback: CallObserver) -> None:
        """Call `callback(module, args, kwargs, output)` after each call of the module at `site`."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.counts[site] += 1
            callback(module, args, kwargs, output)

        self._keep(self.module(site).register_forward_hook(hook, with_kwargs=True))

    def observe_arguments(self, site: str, callback: ArgumentObserver) -> None:
        """Call `callback(module, args, kwargs)` before each call of the module at `site`."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            callback(module, args, kwargs)

        self._keep(self.module(site).register_forward_pre_hook(hook, with_kwargs=True))

    def transform(self, site: str, function: TensorFunction, role: Role = "layer") -> None:
        """Replace the hidden states that the module at `site` returns by `function` of them; shape and dtype
        must stay.
        """

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            self.counts[site] += 1
            before = hidden_states(output, role)
            return with_hidden_states(output, _same_form(site, before, function(before)), role)

        self._keep(self.module(site).register_forward_hook(hook))

    def transform_operator(self, site: str, operator: str, function: TensorFunction, parts_too: bool = False) -> None:
        """Replace the result of every call of `operator` (a name of `hal.operators.OPERATORS`) made while the
        module at `site` runs; with `parts_too` also while a module inside it, and nowhere else, runs alone.
        """
        require_operator(operator)
        key = f"{site}:{operator}"

        def counted(result: torch.Tensor) -> torch.Tensor:
            self.counts[key] += 1
            return _same_form(key, result, function(result))

        if (key, parts_too) not in self._scopes:
            module = self.module(site)
            self._scopes[key, parts_too] = self._scope(parts_of(self._model, site) if parts_too else [module], operator)
        self._scopes[key, parts_too].functions.append(counted)

    def handle_operators(self, site: str, operators: Collection[str], handler: CallHandler) -> None:
        """Pass every call of `operators` made while the module at `site` runs through `handler`, which sees the
        operator's factors before and its result after, and knows which submodule calls; a submodule that is an
        operator itself (`RMSNorm`) counts as one call of it. Not counted in `counts`: the handler knows more.
        """
        for module, enter, leave in OperatorCalls(self.module(site), operators, handler).hooks():
            self._keep(module.register_forward_pre_hook(enter, with_kwargs=True))
            self._keep(module.register_forward_hook(leave, prepend=True, always_call=True))

    def _scope(self, modules: Iterable[nn.Module], operator: str) -> OperatorScope:
        scope = OperatorScope(operator)
        for handle in scope.attach(modules):
            self._keep(handle)
        return scope

    def module(self, site: str) -> nn.Module:
        """The module at `site`; raises HookError that lists what is there instead."""
        if self._ended:
            raise HookError(f"cannot hook '{site}': this set of hooks has ended; attach inside its with block")
        return module_at(self._modules, site)

    def _keep(self, handle: Any) -> None:
        self._handles.callback(handle.remove)


def module_at(modules: Mapping[str, nn.Module], site: str) -> nn.Module:
    """The module called `site` among a model's `modules`, by name; raises HookError that lists what is nearby."""
    if site not in modules:
        raise HookError(f"the model has no module '{site}'; {_nearest(site, modules)}")
    return modules[site]


def parts_of(model: nn.Module, site: str) -> list[nn.Module]:
    """The module at `site` of `model`, and those inside it that lie nowhere else. Raises HookError as `module_at`."""
    places = list(model.named_modules(remove_duplicate=False))
    outer = module_at(dict(places), site)
    elsewhere = {id(module) for name, module in places if site not in enclosing(name)}
    return [outer, *(inner for inner in outer.modules() if inner is not outer and id(inner) not in elsewhere)]


def _same_form(site: str, before: torch.Tensor, after: Any) -> torch.Tensor:
    if not isinstance(after, torch.Tensor):
        raise HookError(f"the transform at '{site}' returned {type(after).__name__}: it must return a tensor")
    if (after.shape, after.dtype, after.device) != (before.shape, before.dtype, before.device):
        raise HookError(
            f"the transform at '{site}' returned {_form(after)} for {_form(before)}: "
            "a transform keeps shape, dtype and device"
        )
    return after


def _form(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def _nearest(site: str, modules: Mapping[str, nn.Module]) -> str:
    parent = next(place for place in enclosing(site) if place in modules)
    children = [name for name, _ in modules[parent].named_children()]
    shown = ", ".join(children[:8]) + (", ..." if len(children) > 8 else "")
    return f"below '{parent or 'the root'}' there are: {shown or 'no modules'}"
