"""Ascend NPUs through torch_npu.

Status experimental: written against torch_npu 2.13.0 and tested on its real wheel over a simulated CANN
(docs/simulated-npu.md), which shows that the calls are right. It has not yet run on an Ascend device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import ClassVar

import torch

import hal
from backends import npu_probe
from backends.switches import environment, pinned
from hal.backend import Status

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


class Npu(hal.TorchBackend):
    """An Ascend NPU; float64 is not offered because the device silently computes it in float32."""

    name: ClassVar[str] = "npu"
    device_type: ClassVar[str] = "npu"
    status: ClassVar[Status] = "experimental"
    collective: ClassVar[str] = "hccl"
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16, torch.float16)

    @classmethod
    def probe(cls) -> hal.Probe:
        """Check for the wheel, CANN and devices without importing torch_npu."""
        return npu_probe.probe()

    @classmethod
    def load(cls) -> None:
        """Import torch_npu, which makes `torch.device("npu")` usable and patches torch."""
        # torch_npu leaves this variable set behind it, which would change how child processes import torch.
        switch = environment(AUTOLOAD)
        with pinned([(switch, switch.read())]):
            try:
                importlib.import_module("torch_npu")
            except (ImportError, RuntimeError, OSError) as error:
                message = " ".join(str(error).split())
                raise hal.BackendUnavailableError(
                    f"backend 'npu' is unavailable: torch_npu does not import ({message}): "
                    "check that CANN's release suits torch_npu's"
                ) from error


@hal.hookimpl
def hal_register_backends(register: Callable[[type[hal.TorchBackend]], None]) -> None:
    """Offer the NPU to the registry."""
    register(Npu)
