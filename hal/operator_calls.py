"""See every call of chosen operators inside a running module: where it is made, what goes in, what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hal.errors import HookError
from hal.module_operators import OperatorCall, Whole, whole_modules
from hal.operators import OPERATORS

ArgumentRole = Literal["input", "weight"]

# Which arguments are factors of the operator's product; everything else (a bias, a mask) only shifts it.
_BINARY: Final[Mapping[int | str, ArgumentRole]] = {0: "input", 1: "input", "input": "input", "other": "input"}
_ADDED: Final[Mapping[int | str, ArgumentRole]] = {1: "input", 2: "weight", "mat1": "input", "mat2": "weight"}
_FACTORS: Final[Mapping[str, Mapping[int | str, ArgumentRole]]] = {
    "linear": {0: "input", 1: "weight", "input": "input", "weight": "weight"},
    "matmul": _BINARY,
    "bmm": {**_BINARY, "mat2": "input"},
    "attention": {0: "input", 1: "input", 2: "input", "query": "input", "key": "input", "value": "input"},
    "embedding": {1: "weight", "weight": "weight"},
}
_UNARY: Final[Mapping[int | str, ArgumentRole]] = {0: "input", "input": "input"}
_BATCHED: Final[Mapping[int | str, ArgumentRole]] = {1: "input", 2: "input", "batch1": "input", "batch2": "input"}


class CallHandler(Protocol):
    """What is done to the tensors of a call; both methods return a tensor of the same shape, dtype and device."""

    def argument(self, call: OperatorCall, tensor: torch.Tensor, role: ArgumentRole) -> torch.Tensor:
        """Replace a floating-point factor of the operator before it runs."""

    def result(self, call: OperatorCall, tensor: torch.Tensor) -> torch.Tensor:
        """Replace the operator's floating-point result."""


@dataclass
class _Frame:
    """One running module: its site, how often each operator was called in it, and whether it is one itself."""

    site: str
    calls: Counter[str] = field(default_factory=Counter)
    is_operator: bool = False


class OperatorCalls:
    """Pass the calls of `operators` made while `root` runs through `handler`. `hooks()` yields what to attach:
    each entry is (module, pre-hook, hook); the pre-hook takes keyword arguments and may return new ones.
    """

    def __init__(self, root: nn.Module, operators: Collection[str], handler: CallHandler) -> None:
        unknown = sorted(set(operators) - set(OPERATORS))
        if unknown or not operators:
            named = ", ".join(unknown) or "(none)"
            raise HookError(f"operators {named} cannot be hooked; choose from: {', '.join(sorted(OPERATORS))}")
        self._root = root
        self._operators = frozenset(operators)
        self._handler = handler
        self._mode = _FactorMode(self._operators, self._spelled)
        self._active = ExitStack()
        self._frames: list[_Frame] = []

    def hooks(self) -> Iterator[tuple[nn.Module, Callable[..., Any], Callable[..., Any]]]:
        """For the root and every module below it, the functions to run before and after it."""
        for module, site, whole in whole_modules(self._root, self._operators):
            yield module, self._enter(site, whole), self._leave(whole)

    def _enter(self, site: str, whole: Whole | None) -> Callable[..., Any]:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._frames:
                self._active.enter_context(self._mode)
            outer_is_operator = bool(self._frames) and self._frames[-1].is_operator
            frame = _Frame(site, is_operator=whole is not None or outer_is_operator)
            self._frames.append(frame)
            if whole is None or whole.takes is None or outer_is_operator:
                return None
            return _with_factors(args, kwargs, _UNARY, whole.takes, self._handler)

        return enter

    def _leave(self, whole: Whole | None) -> Callable[..., Any]:
        def leave(_module: nn.Module, args: Any, output: Any) -> Any:
            if not self._frames:  # another pre-hook raised before this module began
                return None
            try:
                inner = len(self._frames) > 1 and self._frames[-2].is_operator
                if whole is None or output is None or inner:
                    return None
                return whole.results(args, output, self._handler.result)
            finally:
                self._frames.pop()
                if not self._frames:
                    self._active.close()

        return leave

    def _spelled(self, operator: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = self._frames[-1]
        if frame.is_operator:
            return run(*args, **kwargs)
        call = OperatorCall(operator, frame.site, frame.calls[operator])
        frame.calls[operator] += 1
        args, kwargs = _with_factors(args, kwargs, _factors(operator, run), call, self._handler)
        result = run(*args, **kwargs)
        floating = isinstance(result, torch.Tensor) and result.is_floating_point()
        return self._handler.result(call, result) if floating else result


class _FactorMode(TorchFunctionMode):
    """Hands each call of the operators to `spelled`; inside it the mode is not active."""

    def __init__(self, operators: Collection[str], spelled: Callable[..., Any]) -> None:
        super().__init__()
        self._names = {spelling: operator for operator in operators for spelling in OPERATORS[operator]}
        self._spelled = spelled

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, through `spelled` if it is one of the operators."""
        operator = self._names.get(func)
        if operator is None:
            return func(*args, **(kwargs or {}))
        return self._spelled(operator, func, args, kwargs or {})


def _factors(operator: str, run: Callable[..., Any]) -> Mapping[int | str, ArgumentRole]:
    if run in (torch.addmm, torch.Tensor.addmm):
        return _ADDED
    if run in (torch.baddbmm, torch.Tensor.baddbmm):
        return _BATCHED
    if run is functional.linear:
        return _FACTORS["linear"]
    return _FACTORS.get(operator, _UNARY)


def _with_factors(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    factors: Mapping[int | str, ArgumentRole],
    call: OperatorCall,
    handler: CallHandler,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    replaced = [_replaced(value, factors.get(place), call, handler) for place, value in enumerate(args)]
    named = {name: _replaced(value, factors.get(name), call, handler) for name, value in kwargs.items()}
    return tuple(replaced), named


def _replaced(value: Any, role: ArgumentRole | None, call: OperatorCall, handler: CallHandler) -> Any:
    if role is None or not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return handler.argument(call, value, role)
