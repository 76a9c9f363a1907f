"""From a student's width to a teacher's."""

from __future__ import annotations

from torch import nn


def projection(width: int, wanted: int) -> nn.Module:
    """What takes vectors of `width` to `wanted`: nothing where they are equal, else a linear map to be learnt. It is
    orthogonal at first, so that even untrained it keeps sizes and losses have a true scale.
    """
    if width == wanted:
        return nn.Identity()
    linear = nn.Linear(width, wanted, bias=False)
    nn.init.orthogonal_(linear.weight)
    return linear
