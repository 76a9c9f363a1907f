"""A toy accelerator for srdd-hal: it computes in host memory and has one operator of its own."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch.nn import functional

import hal


def fused_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Stands for the vendor's kernel; the arguments are those of the catalogue's `rms_norm`."""
    return functional.rms_norm(x, weight.shape, weight, eps)


class Toy(hal.HostBackend):
    """Two toy devices that share the host's memory."""

    name = "toy"
    status = "experimental"
    dtypes = (torch.float32, torch.bfloat16)
    unsupported_ops: ClassVar[Mapping[str, str]] = {"bmm": "the toy's compiler has no batched product: use matmul"}

    @classmethod
    def probe(cls) -> hal.Probe:
        """Look for the driver; it is part of this package, so it is always found."""
        return hal.Probe(available=True, reason="toy driver 1.0", devices=2)

    def device_name(self) -> str:
        """Name of the device, as the driver gives it."""
        return f"Toy {self.index}"

    def versions(self) -> dict[str, str]:
        """Add the driver's version: it decides how the device rounds."""
        return super().versions() | {"toy_driver": "1.0"}

    def op_overrides(self) -> dict[str, Callable[..., Any]]:
        """The operators that the device computes by itself."""
        return {"rms_norm": fused_rms_norm}


@hal.hookimpl
def hal_register_backends(register: Callable[[type[hal.TorchBackend]], None]) -> None:
    """Offer the device to srdd-hal."""
    register(Toy)
