"""Intercept operator calls inside a running module, by the names of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from hal.errors import HookError

# Every spelling under which model code reaches an operator. addmm is how GPT-2's Conv1D spells linear.
OPERATORS: Mapping[str, frozenset[Callable[..., Any]]] = {
    "linear": frozenset({functional.linear, torch.addmm, torch.Tensor.addmm}),
    "matmul": frozenset(
        {
            torch.matmul,
            torch.mm,
            torch.linalg.matmul,
            torch.Tensor.matmul,
            torch.Tensor.mm,
            torch.Tensor.__matmul__,
            torch.Tensor.__rmatmul__,
        }
    ),
    "bmm": frozenset({torch.bmm, torch.Tensor.bmm, torch.baddbmm, torch.Tensor.baddbmm}),
    "softmax": frozenset({functional.softmax, torch.softmax, torch.special.softmax, torch.Tensor.softmax}),
    "silu": frozenset({functional.silu}),
    "gelu": frozenset({functional.gelu}),
    "layer_norm": frozenset({functional.layer_norm, torch.layer_norm}),
    "rms_norm": frozenset({functional.rms_norm, torch.rms_norm}),
    "attention": frozenset({functional.scaled_dot_product_attention}),
    "embedding": frozenset({functional.embedding}),
}


def require_operator(operator: str) -> None:
    """Raise HookError unless `operator` is a name of `OPERATORS`."""
    if operator not in OPERATORS:
        raise HookError(f"operator '{operator}' cannot be hooked; choose one of: {', '.join(sorted(OPERATORS))}")


class OperatorTransform(TorchFunctionMode):
    """While active, pass the result of each call of one operator through a function; calls that the operator
    makes itself are not seen again.
    """

    def __init__(self, operator: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._spellings = OPERATORS[operator]
        self._function = function

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func` and transform its result if it is one of the operator's spellings."""
        result = func(*args, **(kwargs or {}))
        return self._function(result) if func in self._spellings else result


class ModeScope:
    """Keeps `mode` active while a module runs: `enter` and `leave` are that module's hooks. A module that calls itself,
    or is called again before it has returned, is one scope.
    """

    def __init__(self, mode: TorchFunctionMode) -> None:
        self._mode = mode
        self._active = ExitStack()
        self._depth = 0

    def attach(self, modules: Iterable[nn.Module]) -> list[RemovableHandle]:
        """Put the hooks on `modules`, which may lie in one another; the scope lasts until they are removed."""
        handles = []
        for module in modules:
            handles.append(module.register_forward_pre_hook(self.enter))
            # Before the other forward hooks, whose own operators are not the module's; always_call, because the
            # scope must end even when the module raises.
            handles.append(module.register_forward_hook(self.leave, prepend=True, always_call=True))
        return handles

    def enter(self, _module: nn.Module, _args: Any) -> None:
        """Begin, as a forward pre-hook."""
        if self._depth == 0:
            self._active.enter_context(self._mode)
        self._depth += 1

    def leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """End, as a forward hook that is always called."""
        if self._depth == 0:  # another pre-hook raised before this scope began
            return
        self._depth -= 1
        if self._depth == 0:
            self._active.close()


class OperatorScope(ModeScope):
    """Keeps the results of one operator passing through `functions`, in their order, while a module runs."""

    def __init__(self, operator: str) -> None:
        self.functions: list[Callable[[torch.Tensor], torch.Tensor]] = []
        super().__init__(OperatorTransform(operator, self._apply))

    def _apply(self, result: torch.Tensor) -> torch.Tensor:
        for function in self.functions:
            result = function(result)
        return result
