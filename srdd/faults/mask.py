"""Which elements a fault hits: fixed for the fault's life, and independent of the program's own seeds."""

from __future__ import annotations

import torch

from hal.noise import stream_key, uniform
from hal.unit_mask import ImpossibleMaskError, unit_mask
from srdd.faults.specification import Fault

__all__ = ["fault_mask", "unit_mask"]


def fault_mask(fault: Fault, shape: torch.Size) -> torch.Tensor:
    """Boolean mask that broadcasts over a tensor of `shape`, [..., units], true where `fault` acts. Raises
    ImpossibleMaskError when that is nothing, or more than there is.
    """
    if fault.scope == "units":
        return unit_mask(shape[-1], fault.sparsity, fault.units, fault.seed)
    if fault.scope == "elements":
        return _element_mask(shape, fault.units, fault.seed)
    chosen = unit_mask(fault.period, fault.sparsity, fault.units, fault.seed)
    if fault.scope == "lanes":
        return chosen[torch.arange(shape[-1]) % fault.period]
    if fault.scope == "rows":
        rows = torch.arange(shape[:-1].numel()) % fault.period
        return chosen[rows].reshape(*shape[:-1], 1)
    return chosen[torch.arange(shape.numel()) % fault.period].reshape(shape)


def _element_mask(shape: torch.Size, count: int, seed: int) -> torch.Tensor:
    total = shape.numel()
    if count > total:
        raise ImpossibleMaskError(f"a fault of {count} elements does not fit: the parameter has {total}")
    chosen: dict[int, None] = {}
    draw = 0
    while len(chosen) < count:  # a few more draws than elements, never a permutation of all of them
        places = uniform((2 * count,), seed=seed, stream=stream_key("srdd.faults.elements", draw)) * total
        chosen |= dict.fromkeys(places.long().tolist())
        draw += 1
    mask = torch.zeros(total, dtype=torch.bool)
    mask[list(chosen)[:count]] = True
    return mask.reshape(shape)
