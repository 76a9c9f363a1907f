"""Faults in what a module stores: its parameters and its constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hal.errors import UsageError

# What model code calls the constants of normalisations and of attention.
CONSTANTS = ("variance_epsilon", "eps", "epsilon", "scaling", "scale")


@contextmanager
def corrupt_parameter(
    module: nn.Module, site: str, name: str, corrupt: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Overwrite parameter `name` of `module` by `corrupt` of it for the block; its bits come back afterwards. Raises
    UsageError when there is no such floating-point parameter.
    """
    parameter = dict(module.named_parameters()).get(name)
    if parameter is None or not parameter.is_floating_point():
        known = ", ".join(key for key, value in module.named_parameters() if value.is_floating_point())
        raise UsageError(f"'{site}' has no floating-point parameter '{name}'; it has: {known or 'none'}")
    data = parameter.detach()
    before = data.clone()
    data.copy_(corrupt(before))
    try:
        yield
    finally:
        data.copy_(before)


@contextmanager
def change_constant(
    module: nn.Module, site: str, name: str, corrupt: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Pass the number `name` of `module` (the first usual one when empty) through `corrupt` for the block. Raises
    UsageError when the module has no such number.
    """
    held = [key for key in (CONSTANTS if not name else (name,)) if isinstance(vars(module).get(key), (int, float))]
    if not held:
        numbers = [key for key, value in vars(module).items() if isinstance(value, float)]
        wanted = f"a constant '{name}'" if name else "an epsilon or a scale"
        raise UsageError(f"'{site}' has not {wanted}; its numbers: {', '.join(numbers) or 'none'}; give attribute=NAME")
    before = vars(module)[held[0]]
    setattr(module, held[0], float(corrupt(torch.tensor([before], dtype=torch.float64))))
    try:
        yield
    finally:
        setattr(module, held[0], before)
