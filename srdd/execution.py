"""Run a model as its class says and in its own precision, whatever its user has put around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from hal.errors import ModelError


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that torch.compile wrapped, or the model itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


@contextmanager
def plain_execution(model: nn.Module, device_type: str) -> Iterator[list[str]]:
    """Switch off, for the block, what would compute something else than the model's modules one by one: compiled code,
    which hooks cannot look into, automatic casts to another precision, and inference mode, whose tensors forbid being
    changed. Yields a note on each that changes what is judged. Raises ModelError for a compiled wrapper with hooks of
    its own, which would be left out.
    """
    notes = []
    with ExitStack() as restore:
        restore.enter_context(torch.inference_mode(False))
        restore.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device_type):
            restore.enter_context(torch.autocast(device_type, enabled=False))
            notes.append("autocast was on: the scan ran the model in its own precision, without it")
        if _compiled(model):
            restore.enter_context(torch.compiler.set_stance("force_eager"))
            _unwrap_parts(model, restore)
            notes.append("the model is compiled: its modules were scanned one by one, and compiled kernels not at all")
        yield notes


def _compiled(model: nn.Module) -> bool:
    return any(
        unwrapped(module) is not module or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def _unwrap_parts(model: nn.Module, restore: ExitStack) -> None:
    """Put each compiled part's own module in its place."""
    for place, parent in list(model.named_modules()):
        _require_no_hooks(place, parent)
        for name, part in list(parent._modules.items()):
            if part is not None and unwrapped(part) is not part:
                parent._modules[name] = unwrapped(part)
                restore.callback(parent._modules.__setitem__, name, part)


def _require_no_hooks(place: str, module: nn.Module) -> None:
    if unwrapped(module) is not module and (module._forward_hooks or module._forward_pre_hooks):
        raise ModelError(
            f"'{place or type(module).__name__}' is a compiled wrapper with hooks of its own, which a scan would leave "
            "out: register them on the module inside, ._orig_mod"
        )
