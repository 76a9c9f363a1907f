"""Put faults into a model for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from hal.detour import on_host
from hal.errors import UsageError
from hal.hooks import Hooks
from hal.kv_cache import transform_cache
from hal.structure import LayerStack, find_layer_stack
from srdd.faults.activation import corruption
from srdd.faults.mask import fault_mask
from srdd.faults.random_source import RandomSource
from srdd.faults.specification import KV_CACHE, Fault
from srdd.faults.stored import change_constant, corrupt_parameter


class ActiveFault:
    """A fault while it is in a model: `calls` is how often its place was used, `acted` how often it did something
    there, and `changed` how many elements it altered in all.
    """

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.calls = 0
        self.acted = 0
        self.changed = 0
        self._corrupt = corruption(fault)
        self._masks: dict[torch.Size, torch.Tensor] = {}
        self._trigger = RandomSource(fault.draws)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Corrupt the masked elements of `x`, [..., units]; a value that was NaN before does not count as changed.
        What the host computes in the device's place, another dtype than the fault's, and more tokens, are left alone.
        """
        if on_host() or not self._concerns(x):
            return x
        self.calls += 1
        if not self._triggered() or x.numel() == 0:  # an expert without a token
            return x
        self.acted += 1
        result = torch.where(self._mask(x), self._corrupt(x), x)
        self.changed += int(((result != x) & ~x.isnan()).sum())
        return result

    def _concerns(self, x: torch.Tensor) -> bool:
        """Whether the kernels that the fault is tied to compute `x`: of attention [batch, heads, tokens, ...]."""
        if self.fault.dtype not in ("", str(x.dtype).removeprefix("torch.")):
            return False
        tokens = x.shape[0] * x.shape[2] if x.dim() == 4 else x.shape[:-1].numel()
        return not self.fault.tokens or tokens <= self.fault.tokens

    def _triggered(self) -> bool:
        return self.calls % self.fault.every == 0 and (self.fault.rate == 1 or self._trigger.scalar() < self.fault.rate)

    def _mask(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape not in self._masks:
            self._masks[x.shape] = fault_mask(self.fault, x.shape)
        return self._masks[x.shape].to(x.device)


@contextmanager
def simulate(model: nn.Module, faults: Sequence[Fault]) -> Iterator[list[ActiveFault]]:
    """Put `faults` into `model` for the block and remove them completely afterwards, also after an exception:
    weights and constants get their former bits back. Yields one ActiveFault each. Raises UsageError for a layer, site,
    parameter or constant that the model does not have.
    """
    stack = find_layer_stack(model)
    active = [ActiveFault(fault) for fault in faults]
    with Hooks(model) as hooks, ExitStack() as changes:
        for entry in active:
            _attach(hooks, changes, stack, entry)
        yield active


def _attach(hooks: Hooks, changes: ExitStack, stack: LayerStack, entry: ActiveFault) -> None:
    fault = entry.fault
    if fault.layer is None:
        if stack.holds(fault.site):
            raise UsageError(
                f"fault '{fault.kind}@{fault.site}' is inside the layers: write {fault.kind}@LAYER:site=NAME"
            )
        layer, site = hooks.module(fault.site), fault.site
    elif fault.layer >= len(stack):
        raise UsageError(
            f"fault '{fault.kind}@{fault.layer}': the model has layers 0 to {len(stack) - 1}; choose one of them"
        )
    else:
        layer, site = stack.layers[fault.layer], stack.site(fault.layer) + (f".{fault.site}" if fault.site else "")
    if fault.site == KV_CACHE:
        changes.enter_context(transform_cache(layer, lambda _stored, read: (entry(read[0]), entry(read[1]))))
        return
    if fault.kind == "wrong_constant":
        changes.enter_context(change_constant(hooks.module(site), site, fault.attribute, entry))
    elif fault.parameter:
        changes.enter_context(corrupt_parameter(layer, hooks.module(site), site, fault.parameter, entry))
    elif fault.operator:
        hooks.transform_operator(site, fault.operator, entry, parts_too=True)  # a scan runs them alone
    else:
        hooks.transform(site, entry, role="submodule" if fault.site else "layer")
