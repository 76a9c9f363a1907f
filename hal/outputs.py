"""Read and replace the hidden states in whatever a module returns."""

from __future__ import annotations

from typing import Any, Literal

import torch

from hal.errors import HookError

Role = Literal["layer", "submodule"]


def hidden_states(output: Any, role: Role = "layer") -> torch.Tensor:
    """The tensor that a module's `output` stands for. A tensor is itself; of a tuple or list it is the first
    entry, except that a layer which returns a pair of tensors of one shape returns `(hidden, residual)` as
    vLLM's layers do, whose addition happens in the next layer: there it is their sum. Raises HookError for
    anything else.
    """
    if isinstance(output, torch.Tensor):
        return output
    hidden, residual = _split(output, role)
    return hidden if residual is None else hidden + residual


def with_hidden_states(output: Any, hidden: torch.Tensor, role: Role = "layer") -> Any:
    """`output` with its hidden states replaced by `hidden`; a `(hidden, residual)` pair becomes `(hidden,
    zeros)`, freshly allocated because a fused add-and-normalise may write into it, and adding zero is exact.
    """
    if isinstance(output, torch.Tensor):
        return hidden
    _, residual = _split(output, role)
    if residual is not None:
        return _like(output, (hidden, torch.zeros_like(hidden)))
    return _like(output, (hidden, *output[1:]))


def _like(output: Any, entries: tuple[Any, ...]) -> Any:
    # A named tuple's constructor takes its entries one by one.
    make = getattr(type(output), "_make", type(output))
    return make(entries)


def _split(output: Any, role: Role) -> tuple[torch.Tensor, torch.Tensor | None]:
    if not isinstance(output, (tuple, list)) or not output or not isinstance(output[0], torch.Tensor):
        raise HookError(
            f"a module returned {_describe(output)}: hooks understand a tensor, a tuple that starts with one, "
            "or (hidden, residual); hook one of its submodules instead"
        )
    hidden = output[0]
    if role == "submodule" or len(output) != 2 or not isinstance(output[1], torch.Tensor):
        return hidden, None
    residual = output[1]
    if residual.shape == hidden.shape:
        return hidden, residual
    if residual.dim() == hidden.dim() and residual.shape[-1] == hidden.shape[-1]:
        raise HookError(
            f"a layer returned (hidden, residual) of different shapes {tuple(hidden.shape)} and "
            f"{tuple(residual.shape)}: their sum is undefined; switch sequence parallelism off"
        )
    return hidden, None


def _describe(output: Any) -> str:
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {', '.join(type(item).__name__ for item in output) or 'nothing'}"
    return f"a {type(output).__name__}"
