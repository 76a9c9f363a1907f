"""What a student is given to see whether a loss teaches by what the teacher knows."""

from __future__ import annotations

from dataclasses import replace

import torch

from distill.forward_pass import ForwardPass
from distill.key_values import KeyValues
from hal.errors import UsageError


def shuffled(teacher: ForwardPass, generator: torch.Generator) -> ForwardPass:
    """The same pass, in which every example has the keys, values and attention of another one of its batch. A loss that
    helps as much with these does not help by what the teacher made of the example. Raises UsageError for a batch of
    one.
    """
    batch = teacher.counted.shape[0]
    if batch < 2:
        raise UsageError(f"a batch of {batch} has no other example to take keys and values from: use 2 or more")
    shift = int(torch.randint(1, batch, (), generator=generator))
    return replace(
        teacher,
        key_values=tuple(
            KeyValues(entry.keys.roll(shift, 0), entry.values.roll(shift, 0)) for entry in teacher.key_values
        ),
        attention=teacher.attention and tuple(entry.roll(shift, 0) for entry in teacher.attention),
        counted=teacher.counted.roll(shift, 0),
    )
