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
    layer: nn.Module, module: nn.Module, site: str, name: str, corrupt: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Overwrite parameter `name` of `module`, in `layer`, by `corrupt` of it for the block; its bits come back
    afterwards. Raises UsageError when there is no such floating-point parameter.
    """
    parameter = dict(module.named_parameters()).get(name)
    if parameter is None or not parameter.is_floating_point():
        known = ", ".join(key for key, value in module.named_parameters() if value.is_floating_point())
        raise UsageError(f"'{site}' has no floating-point parameter '{name}'; it has: {known or 'none'}")
    overwritten = _Overwritten(module, name, corrupt)
    if parameter.is_meta:  # a streamed layer, whose weights come when it runs
        handle = layer.register_forward_pre_hook(lambda *_: overwritten.follow())
    else:
        handle = None
        overwritten.follow()
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        overwritten.restore()


class _Overwritten:
    """A parameter and the bits it had: `follow` overwrites whatever tensor the module holds now, once."""

    def __init__(self, module: nn.Module, name: str, corrupt: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._module = module
        self._name = name
        self._corrupt = corrupt
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None

    def follow(self) -> None:
        parameter = self._module.get_parameter(self._name)
        if self._held is None or self._held[0] is not parameter:
            before = parameter.detach().clone()
            self._held = parameter, before
            parameter.detach().copy_(self._corrupt(before))

    def restore(self) -> None:
        if self._held is not None:
            parameter, before = self._held
            parameter.detach().copy_(before)


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
