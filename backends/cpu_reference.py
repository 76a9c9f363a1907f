"""The host CPU: runs anywhere, and is the oracle that other backends are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import torch

import hal
from hal.backend import Status

# With AVX-512 torch has oneDNN compute gelu in bfloat16, which doubles on the way; its own code is right.
ONEDNN_BFLOAT16 = torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
GELU = {"sweeps/gelu/bfloat16": "oneDNN's gelu returns inf from 2**127 on in bfloat16: it doubles on the way"}


class CpuReference(hal.HostBackend):
    """Plain torch on the host, in the dtype asked for; always available."""

    name: ClassVar[str] = "cpu-reference"
    status: ClassVar[Status] = "stable"
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    # Measured on torch 2.13 by the conformance suite, on x86_64; the keys are patterns of its cases.
    known_failures: ClassVar[Mapping[str, str]] = (GELU if ONEDNN_BFLOAT16 else {}) | {
        "gradients/layer_norm/*float16/large/*": "torch sums the gradient of layer_norm's weight over the rows in the "
        "narrow dtype, up to 3 % off the largest",
    }

    @classmethod
    def probe(cls) -> hal.Probe:
        """Always available, as one device."""
        return hal.Probe(True, f"host CPU, {torch.get_num_threads()} threads", 1)

    @contextlib.contextmanager
    def numeric_mode(self, mode: hal.NumericMode) -> Iterator[None]:
        """Add oneDNN's float32 precision switch to the deterministic setting."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium" if mode.reduced_precision_matmul else "highest")
        try:
            with super().numeric_mode(mode):
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def numeric_switches(self) -> dict[str, str]:
        """Add the float32 matmul precision and the vector instruction set in use."""
        return super().numeric_switches() | {
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        }


@hal.hookimpl
def hal_register_backends(register: Callable[[type[hal.TorchBackend]], None]) -> None:
    """Offer the host to the registry."""
    register(CpuReference)
