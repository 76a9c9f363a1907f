"""Ascend NPUs through torch_npu.

Status experimental: written against torch_npu 2.13.0 and tested on its real wheel over a simulated CANN
(docs/simulated-npu.md), which shows that the calls are right. It has not yet run on an Ascend device.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch

import hal
from backends import npu_numerics, npu_ops, npu_probe
from backends.events import event_timer
from backends.switches import environment, pinned
from hal.backend import Status

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


class Npu(hal.TorchBackend):
    """An Ascend NPU. float64 is not offered: the device silently computes it in float32."""

    name: ClassVar[str] = "npu"
    device_type: ClassVar[str] = "npu"
    status: ClassVar[Status] = "experimental"
    collective: ClassVar[str] = "hccl"
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16, torch.float16)
    known_failures: ClassVar[Mapping[str, str]] = {
        "gelu": "on 910B aclnnGelu computes the tanh form whatever `approximate` says, up to 5e-4 off "
        "(op-plugin GeluOutKernelNpuOpApi.cpp); TORCH_NPU_USE_COMPATIBLE_IMPL=1 restores the exact form",
    }

    @classmethod
    def probe(cls) -> hal.Probe:
        """Check for the wheel, CANN and devices without importing torch_npu."""
        return npu_probe.probe()

    @classmethod
    def load(cls) -> None:
        """Import torch_npu, which makes `torch.device("npu")` usable and patches torch.

        Operators without an NPU kernel raise from then on, unless TORCH_NPU_FALLBACK_CPU_DISABLE=0 says
        that they may run on the host: what ran on the host tells nothing about the device.
        """
        npu_numerics.forbid_cpu_fallback()
        # torch_npu leaves this variable set behind it, which would change how child processes import
        # torch, and prints advice to standard output, where a report may be expected.
        autoload = environment(AUTOLOAD)
        with pinned([(autoload, autoload.read())]), contextlib.redirect_stdout(sys.stderr):
            _import_torch_npu()

    def versions(self) -> dict[str, str]:
        """Add torch_npu and CANN."""
        vendor = importlib.import_module("torch_npu")
        return super().versions() | {
            "torch_npu": str(vendor.__version__),
            "cann": str(vendor.npu.utils.get_cann_version()),
        }

    @contextlib.contextmanager
    def timer(self) -> Iterator[hal.Timer]:
        """Measure by NPU events on the current stream."""
        with event_timer(self._module, self.index) as timer:
            yield timer

    def numeric_switches(self) -> dict[str, str]:
        """Add HF32, the overflow mode, the level of determinism and the variables that CANN reads."""
        return super().numeric_switches() | npu_numerics.current(self._module)

    @contextlib.contextmanager
    def numeric_mode(self, mode: hal.NumericMode) -> Iterator[None]:
        """Pin HF32 and determinism; raises UsageError when overflow saturates.

        To be entered before the first operator: the device takes its determinism from the first setting
        that an operator follows.
        """
        npu = self._module
        level = npu_numerics.deterministic_level(npu)
        with (
            npu_numerics.pinned_precision(npu, mode),
            super().numeric_mode(mode),
            npu_numerics.pinned_level(npu, level, mode.deterministic),
        ):
            yield

    def op_overrides(self) -> Mapping[str, Callable[..., Any]]:
        """torch_npu's fused kernels."""
        return npu_ops.fused_operators()


def _import_torch_npu() -> None:
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # it raises bare Exception for a toolkit it cannot use
        message = " ".join(str(error).split())
        raise hal.BackendUnavailableError(
            f"backend 'npu' is unavailable: torch_npu does not import ({message}): "
            "check that the release of CANN suits torch_npu's"
        ) from error


@hal.hookimpl
def hal_register_backends(register: Callable[[type[hal.TorchBackend]], None]) -> None:
    """Offer the NPU to the registry."""
    register(Npu)
