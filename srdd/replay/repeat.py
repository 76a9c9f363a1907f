"""Does a module err in the same way each time? A fault of its own arithmetic does; noise does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

SAME = 0.5  # share of an error by which it may change from call to call: two independent errors change by 1.4


def errs_alike(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    """Whether the errors of two calls with the same arguments differ by less than half of what they are, in root mean
    square over all tensors.
    """
    if [error.shape for error in first] != [error.shape for error in second]:
        return False
    change = sum(float((a - b).square().sum()) for a, b in zip(first, second, strict=True))
    return change <= SAME**2 * sum(float(error.square().sum()) for error in first)
