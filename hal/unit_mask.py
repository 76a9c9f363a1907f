"""Which hidden units something hits: fixed by a seed, and independent of the program's own generators."""

from __future__ import annotations

import torch

from hal.errors import UsageError
from hal.noise import stream_key, uniform


class ImpossibleMaskError(UsageError):
    """A mask that would hit nothing, or more than there is."""


def unit_mask(width: int, sparsity: float, units: int = 0, seed: int = 0) -> torch.Tensor:
    """Boolean mask over the last dimension, [width], true for the units hit: `units` of them, or round(sparsity
    * width) when `units` is 0, chosen by `seed`. Raises ImpossibleMaskError when that would be none or more than
    there are.
    """
    count = units or round(sparsity * width)
    if count == 0:
        raise ImpossibleMaskError(
            f"sparsity {sparsity} of {width} hidden units hits none of them: "
            f"raise it above {0.5 / width:.4g} or give units=1"
        )
    if count > width:
        raise ImpossibleMaskError(f"a fault of {count} units does not fit: the output has {width} hidden units")
    order = uniform((width,), seed=seed, stream=stream_key("srdd.faults.mask")).argsort(stable=True)
    mask = torch.zeros(width, dtype=torch.bool)
    mask[order[:count]] = True
    return mask
