"""Inputs of a module that bring each unit of its result above the others in turn: a unit that is clamped, or wrong in
what is large, is seldom the largest by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from srdd.replay.capture import ModuleCall, tensors_in

CROSSTALK = 16  # inputs to a unit raised in one row: the others come out at a quarter (standard deviation) of it
WEAK = 0.05  # of the median square of a unit's weights
CHUNK = 2**12  # units multiplied at a time: a head has many

# From rows of an input, [count, inputs], how many times as much as by chance to reach, and the largest input allowed,
# to rows that take their place.
Raise = Callable[[torch.Tensor, float, float], torch.Tensor]


def raising(module: nn.Module, call: ModuleCall) -> Raise | None:
    """How to raise the units of the module that made `call`: a matrix product, or one that returns a tensor like the
    one that it was given. None for others.
    """
    given, output = call.handed(), tensors_in(call.output)
    if len(given) != 1 or len(output) != 1 or not output[0].numel():
        return None
    weight = _weight(module, output[0].shape[-1], given[0].shape[-1])
    if weight is not None:
        largest = float(output[0].abs().max())
        return partial(_by_weights, weight, largest) if 0 < largest < math.inf else None
    return _by_elements if given[0].shape == output[0].shape else None


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
    raised = torch.zeros(count, inputs).index_add_(0, torch.arange(len(units)) % count, share)
    reached = [(raised @ _on_host(part).T).abs().amax(-1, keepdim=True) for part in torch.split(weight, CHUNK)]
    raised *= factor * largest / torch.stack(reached).amax(0).clamp_min(torch.finfo(torch.float32).tiny)
    return raised * (most / raised.abs().amax(-1, keepdim=True).clamp_min(most))


def _by_elements(rows: torch.Tensor, factor: float, most: float) -> torch.Tensor:
    """Each element, in one row at least, `factor` times the largest of `rows`."""
    count, width = rows.shape
    raised = rows.clone()
    units = torch.arange(width)
    raised[units % count, units] = min(factor * float(rows.abs().max()), most)
    return raised


def _on_host(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to("cpu").float().nan_to_num(0.0, 0.0, 0.0)
