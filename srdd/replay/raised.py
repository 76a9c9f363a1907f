"""Inputs of a module that bring each unit of its result above the others in turn: a unit that is clamped, or wrong in
what is large, is seldom the largest by chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from srdd.replay.capture import ModuleCall, map_tensors, tensors_in

CROSSTALK = 16  # inputs to a unit raised in one row: the others come out at a quarter (standard deviation) of it
WEAK = 0.05  # of the median square of a unit's weights
OUTSTANDING = 2.0**7  # times the largest result of a product that makes the output of what it is part of
CHUNK = 2**12  # units multiplied at a time: a head has many

# From rows of an input, [count, inputs], how many times as much as by chance to reach, and the largest input allowed,
# to rows that take their place.
Raise = Callable[[torch.Tensor, float, float], torch.Tensor]


def raising(module: nn.Module, call: ModuleCall) -> Raise | None:
    """How to raise the units of the module that made `call`: a matrix product, or one that returns a tensor like the
    one that it was given. None for others.
    """
    given, output = call.handed(), tensors_in(call.output)
    if len(given) != 1 or len(output) != 1:
        return None
    alike = given[0].shape == output[0].shape and output[0].dim() > 0 and output[0].numel() > 0
    return _product(module, given[0], output[0]) or (_by_elements if alike else None)


def with_units_raised(layer: nn.Module, call: ModuleCall) -> ModuleCall:
    """The call of a module of `layer` that has parts, to be made again with the units of the last matrix product in it
    raised, if as many come out of it as of the module; else the call as it was.
    """
    units = [tensor.shape[-1:] for tensor in tensors_in(call.output)[:1]]
    names = Counter(inner.name for inner in call.walk())
    for last in reversed([inner for inner in call.walk() if not inner.children]):
        output, x = last.output, last.args[0] if last.args else None
        if not isinstance(x, torch.Tensor) or not isinstance(output, torch.Tensor) or [output.shape[-1:]] != units:
            continue
        product = _product(layer.get_submodule(last.name), x, output)
        if product is not None and last is not call and names[last.name] == 1:
            rows = product(x.float().reshape(-1, x.shape[-1]), OUTSTANDING, torch.finfo(x.dtype).max / 64)
            return _with_input(call, last, rows.reshape(x.shape).to(x.dtype))
    return call


def with_results_raised(call: ModuleCall) -> ModuleCall | None:
    """The call of a module to be made again for its own arithmetic alone: its parts are stubs that return what they
    returned, but the last to return a tensor like the module's own has each unit of it far above all others in one
    of its even rows, and far below in another. None where no part did.
    """
    output = next(iter(tensors_in(call.output)), None)
    if output is None or not (output.dim() and output.numel()):
        return None
    top = OUTSTANDING * float(output.abs().max())
    stubs = [replace(child, stub=True, children=[]) for child in call.children]
    for stub in reversed(stubs):
        like = next((tensor for tensor in tensors_in(stub.output) if tensor.shape == output.shape), None)
        if like is not None and 0 < top < math.inf:
            stub.output = map_tensors(stub.output, partial(_instead_of, like, _each_way(like, top)))
            return replace(call, children=stubs)
    return None


def _instead_of(old: torch.Tensor, new: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return new if tensor is old else tensor


def _with_input(call: ModuleCall, inner: ModuleCall, value: torch.Tensor) -> ModuleCall:
    if call is inner:
        return replace(call, instead=value)
    return replace(call, children=[_with_input(child, inner, value) for child in call.children])


def _product(module: nn.Module, x: torch.Tensor, output: torch.Tensor) -> Raise | None:
    """How to raise the units of a matrix product that made `output` of `x`; None where the module is none."""
    if not (x.dim() and output.dim() and output.numel()):  # an expert to which no token was routed gives nothing
        return None
    weight = _weight(module, output.shape[-1], x.shape[-1])
    if weight is None:
        return None
    largest = float(output.abs().max())
    return partial(_by_weights, weight, largest) if 0 < largest < math.inf else None


def _weight(module: nn.Module, units: int, inputs: int) -> torch.Tensor | None:
    """The weights of the matrix product that the module is, [units, inputs]; None where it is none."""
    weight: torch.Tensor | None = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        return None
    if isinstance(module, Conv1D) or tuple(weight.shape) != (units, inputs):
        weight = weight.T
    return weight if tuple(weight.shape) == (units, inputs) else None


def _by_weights(weight: torch.Tensor, largest: float, rows: torch.Tensor, factor: float, most: float) -> torch.Tensor:
    """In each row the sum of a few units' weights, over their squares: these units come out above nearly all others,
    the highest at `factor * largest`. Where the rows are too few for all units, units evenly spread.
    """
    count, inputs = rows.shape
    units = torch.arange(0, len(weight), -(-len(weight) // (max(inputs // CROSSTALK, 1) * count)))
    chosen = _on_host(weight[units.to(weight.device)])
    squares = chosen.square().sum(-1, keepdim=True)
    # A unit whose weights are next to nothing would drown the others in what it takes to raise it.
    share = chosen / squares.clamp_min(squares.median() * WEAK).clamp_min(torch.finfo(torch.float32).tiny)
    turns = torch.arange(max(len(units), count))
    raised = torch.zeros(count, inputs).index_add_(0, turns % count, share[turns % len(units)])
    reached = [(raised @ _on_host(part).T).abs().amax(-1, keepdim=True) for part in torch.split(weight, CHUNK)]
    raised *= (factor * largest / torch.stack(reached).amax(0)).nan_to_num(posinf=0.0)  # a unit without weights
    return raised * (most / raised.abs().amax(-1, keepdim=True).clamp_min(most))


def _by_elements(rows: torch.Tensor, factor: float, most: float) -> torch.Tensor:
    """Each element, in one row at least, `factor` times the largest of `rows`."""
    count, width = rows.shape
    raised = rows.clone()
    units = torch.arange(width)
    raised[units % count, units] = min(factor * float(rows.abs().max()), most)
    return raised


def _each_way(x: torch.Tensor, top: float) -> torch.Tensor:
    """`x` with each unit `top` in one of its even rows, and minus `top` in another if there are two."""
    rows = x.reshape(-1, x.shape[-1]).clone()
    count, units = -(-len(rows) // 2), torch.arange(rows.shape[-1])
    top = min(top, torch.finfo(x.dtype).max / 64)
    rows[2 * ((units + count // 2) % count), units] = -top
    rows[2 * (units % count), units] = top
    return rows.reshape(x.shape)


def _on_host(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to("cpu").float().nan_to_num(0.0, 0.0, 0.0)
