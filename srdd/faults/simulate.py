"""Put faults into a model for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from hal.errors import UsageError
from hal.hooks import Hooks
from hal.structure import LayerStack, find_layer_stack
from srdd.faults.activation import corruption
from srdd.faults.mask import unit_mask
from srdd.faults.specification import Fault


class ActiveFault:
    """A fault while it is in a model: `calls` is how often it acted, `changed` how many elements it altered in
    all.
    """

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.calls = 0
        self.changed = 0
        self._corrupt = corruption(fault)
        self._masks: dict[int, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Corrupt the masked units of `x`, [..., units]; a value that was NaN before does not count as changed."""
        self.calls += 1
        if x.numel() == 0:  # an expert without a token
            return x
        result = torch.where(self._mask(x), self._corrupt(x), x)
        self.changed += int(((result != x) & ~x.isnan()).sum())
        return result

    def _mask(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1]
        if width not in self._masks:
            self._masks[width] = unit_mask(width, self.fault.sparsity, self.fault.units, self.fault.seed)
        return self._masks[width].to(x.device)


@contextmanager
def simulate(model: nn.Module, faults: Sequence[Fault]) -> Iterator[list[ActiveFault]]:
    """Put `faults` into `model` for the block and remove them completely afterwards, also after an exception.
    Yields one ActiveFault each. Raises UsageError for a layer or site that the model does not have.
    """
    stack = find_layer_stack(model)
    active = [ActiveFault(fault) for fault in faults]
    with Hooks(model) as hooks:
        for entry in active:
            _attach(hooks, stack, entry)
        yield active


def _attach(hooks: Hooks, stack: LayerStack, entry: ActiveFault) -> None:
    fault = entry.fault
    if fault.layer >= len(stack):
        raise UsageError(
            f"fault '{fault.kind}@{fault.layer}': the model has layers 0 to {len(stack) - 1}; choose one of them"
        )
    site = stack.site(fault.layer) + (f".{fault.site}" if fault.site else "")
    if fault.operator:
        hooks.transform_operator(site, fault.operator, entry)
    else:
        hooks.transform(site, entry, role="submodule" if fault.site else "layer")
