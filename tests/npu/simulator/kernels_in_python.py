"""Write a device kernel in Python as a plain function on host tensors."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

Body = Callable[[SimpleNamespace], Any]

_LIBRARIES = {name: torch.library.Library(name, "IMPL") for name in ("aten", "npu")}


def kernel(qualified: str) -> Callable[[Body], Body]:
    """Register the decorated function for `namespace::operator` on the device.

    It gets one object with an attribute for each argument of the operator's schema, tensors as views in
    host memory, and `device`; the host tensors that it returns are moved to that device.
    """
    namespace, _, name = qualified.partition("::")
    schema = getattr(getattr(torch.ops, namespace), name).default._schema

    def register(body: Body) -> Body:
        def run(*args: Any, **kwargs: Any) -> Any:
            call = _bind(schema, args, kwargs)
            return _to_device(body(call), call.device)

        _LIBRARIES[namespace].impl(name, run, "PrivateUse1")
        return body

    return register


def _bind(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SimpleNamespace:
    values = {argument.name: argument.default_value for argument in schema.arguments}
    values.update(zip(values, args, strict=False))
    values.update(kwargs)
    device = next(value.device for value in values.values() if isinstance(value, torch.Tensor))
    return SimpleNamespace(device=device, **{name: _to_host(value) for name, value in values.items()})


def _to_host(value: Any) -> Any:
    return torch.ops.npu_sim.host_view(value) if isinstance(value, torch.Tensor) else value


def _to_device(result: Any, device: torch.device) -> Any:
    if isinstance(result, tuple):
        return tuple(_to_device(item, device) for item in result)
    return torch.ops.npu_sim.device_result(result, device) if isinstance(result, torch.Tensor) else result
