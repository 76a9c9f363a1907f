"""From a student's width to a teacher's."""

from __future__ import annotations

import math

import torch
from torch import nn


def projection(width: int, wanted: int, generator: torch.Generator | None = None) -> nn.Module:
    """What takes vectors of `width` to `wanted`: nothing where they are equal, else a linear map to be learnt. It is
    orthogonal at first, drawn from `generator`, and where it narrows scaled by sqrt(width / wanted), so that even
    untrained it keeps sizes (in the mean, where it narrows) and losses have a true scale.
    """
    if width == wanted:
        return nn.Identity()
    linear = nn.Linear(width, wanted, bias=False)
    nn.init.orthogonal_(linear.weight, max(1.0, math.sqrt(width / wanted)), generator)
    return linear
