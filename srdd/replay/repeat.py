"""Does a module err in the same way each time? A fault of its own arithmetic does; noise does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

SAME = 0.5  # share of an error by which it may change from call to call: two independent errors change by 1.4


def errs_alike(
    first: Sequence[torch.Tensor], second: Sequence[torch.Tensor], wrong: Sequence[torch.Tensor]
) -> bool | None:
    """Whether the errors of two calls with the same arguments differ by less than half of what the first are, in root
    mean square over the elements that are `wrong` (masks, of the first call). None where the second call hardly errs
    anywhere: a fault that came and went, or that needs more of the layer than this module.
    """
    if [error.shape for error in first] != [error.shape for error in second]:
        return False
    limit = SAME**2 * _power(first, wrong)
    if _power(second, [torch.ones_like(mask) for mask in wrong]) < limit:
        return None
    return _power([a - b for a, b in zip(first, second, strict=True)], wrong) <= limit


def _power(errors: Sequence[torch.Tensor], where: Sequence[torch.Tensor]) -> float:
    return sum(float(error[mask].square().sum()) for error, mask in zip(errors, where, strict=True))
