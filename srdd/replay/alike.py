"""Values that agree in every row, for an attention: whatever its weights, their mean is what they all are, so that each
unit of it is known to come up.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from srdd.replay.capture import ModuleCall, OperatorCall
from srdd.replay.raised import OUTSTANDING

# Of the largest, each unit in one sequence of a batch after the other: the largest both ways, and two that tell a
# clamp from a factor.
LEVELS = (1.0, -1.0, 0.25, -0.0625)
_VALUES = {"attention": (2, "value"), "matmul": (1, "other"), "bmm": (1, "mat2")}


def with_values_alike(call: ModuleCall) -> ModuleCall | None:
    """The call of an attention to be made again for its own arithmetic alone: its parts are stubs that return what they
    returned, but the values that it takes means of are the same in every row of a sequence, each unit far above or
    below all that they were. None where it is no attention, or its values are not what one of its parts returned.
    """
    columns = _columns(call)
    if not columns:
        return None
    stubs = [replace(child, stub=True, children=[]) for child in call.children]
    for stub in stubs:
        chosen = _among(stub.output, columns)
        if chosen is not None:
            top = OUTSTANDING * float(stub.output.masked_fill(~chosen, 0.0).abs().max())
            if 0 < top < math.inf:
                stub.output = _alike(stub.output, chosen, top)
                return replace(call, children=stubs)
    return None


def mean_of(call: ModuleCall) -> OperatorCall | None:
    """The operator by which the module of `call` takes means of its values: the attention, or the first product behind
    a softmax. None where there is none.
    """
    names = [operator.name for operator in call.operators]
    start = next((place for place, name in enumerate(names) if name in ("softmax", "attention")), len(names))
    return next((operator for operator in call.operators[start:] if operator.name in _VALUES), None)


def _columns(call: ModuleCall) -> set[bytes]:
    """Each unit of the values that the call takes means of, over the rows of a sequence."""
    mean = mean_of(call)
    if mean is None:
        return set()
    place, name = _VALUES[mean.name]
    values = mean.args[place] if len(mean.args) > place else mean.kwargs.get(name)
    if not isinstance(values, torch.Tensor) or values.dim() < 3 or not values.numel():
        return set()
    return set(_as_columns(values))


def _among(output: Any, columns: set[bytes]) -> torch.Tensor | None:
    """Which units of what a part returned, [sequences, rows, units], are among the columns in every sequence; None
    where it returned something else.
    """
    if not isinstance(output, torch.Tensor) or output.dim() != 3 or not output.numel():
        return None
    found = torch.tensor([column in columns for column in _as_columns(output)])
    return found.reshape(len(output), -1).all(0)


def _as_columns(x: torch.Tensor) -> list[bytes]:
    """The columns of the matrices that the last two axes of `x` are, in order."""
    columns = x.transpose(-1, -2).reshape(-1, x.shape[-2])
    as_bytes = columns.flatten().contiguous().view(torch.uint8)  # flat first: one row has a stride of its own
    return [column.tobytes() for column in as_bytes.reshape(len(columns), -1).numpy()]


def _alike(x: torch.Tensor, chosen: torch.Tensor, top: float) -> torch.Tensor:
    """`x`, [sequences, rows, units], with the chosen units the same in every row of a sequence, `top` at most: powers
    of two and their last bit. A truncation takes it from them; what rounding does to weights is half a step of such
    numbers at most, to either side.
    """
    limits = torch.finfo(x.dtype)
    top = 2.0 ** math.floor(math.log2(min(top, limits.max / 64))) * (1 + limits.eps)
    turns = (torch.arange(len(x)).unsqueeze(-1) + torch.arange(x.shape[-1])) % len(LEVELS)
    values = (top * torch.tensor(LEVELS)[turns]).to(x.dtype).unsqueeze(1).expand(x.shape)
    return torch.where(chosen, values, x)
