"""NVIDIA GPUs through torch's own CUDA backend.

Status beta: what needs no GPU is tested in CI, the rest only where a GPU is present (pytest marker `gpu`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch

import hal
from backends.events import event_timer
from backends.switches import Switch, attribute, environment, pinned, report
from hal.backend import Status

VISIBLE = "CUDA_VISIBLE_DEVICES"
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")

# Their settings exist only at run time, out of a type checker's sight.
_MATMUL: Any = torch.backends.cuda.matmul
_CUDNN: Any = torch.backends.cudnn


class Cuda(hal.TorchBackend):
    """A CUDA device; float32 products keep all their bits unless reduced precision is asked for."""

    name: ClassVar[str] = "cuda"
    device_type: ClassVar[str] = "cuda"
    status: ClassVar[Status] = "beta"
    collective: ClassVar[str] = "nccl"
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

    @classmethod
    def probe(cls) -> hal.Probe:
        """Ask torch's build, the driver library and NVML, in that order; creates no CUDA context."""
        if torch.version.cuda is None and torch.version.hip is None:
            return _absent(f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch")
        hidden = os.environ.get(VISIBLE)
        driver_error = _driver_error()
        if driver_error is not None:
            return _absent(f"no NVIDIA driver ({driver_error}): install one, or give the container access to the GPUs")
        count, complaint = _device_count()
        if count > 0:
            return hal.Probe(True, f"{count} CUDA device(s), CUDA {torch.version.cuda}", count)
        if hidden is not None:
            return _absent(
                f"{VISIBLE}='{hidden}' leaves no device visible: unset it, or list distinct ids that nvidia-smi shows"
            )
        return _absent(f"the driver reports no CUDA device ({complaint}): check nvidia-smi")

    def versions(self) -> dict[str, str]:
        """Add CUDA, cuDNN and the device's compute capability."""
        major, minor = torch.cuda.get_device_capability(self.index)
        return super().versions() | {
            "cuda": str(torch.version.cuda),
            "cudnn": str(_CUDNN.version()),
            "compute_capability": f"{major}.{minor}",
        }

    @contextlib.contextmanager
    def timer(self) -> Iterator[hal.Timer]:
        """Measure by CUDA events on the current stream."""
        with event_timer(torch.cuda, self.index) as timer:
            yield timer

    def numeric_switches(self) -> dict[str, str]:
        """Add the TF32, reduced-precision-reduction, cuDNN and cuBLAS settings."""
        switches = [*_precision_switches(), *_reduction_switches(), *_determinism_switches()]
        return super().numeric_switches() | report(switches)

    @contextlib.contextmanager
    def numeric_mode(self, mode: hal.NumericMode) -> Iterator[None]:
        """Pin TF32, how half-precision products accumulate and, if deterministic, cuDNN and cuBLAS."""
        with pinned(_settings(mode)), super().numeric_mode(mode):
            yield


def _absent(reason: str) -> hal.Probe:
    return hal.Probe(False, reason)


def _driver_error() -> str | None:
    """Why the driver's library cannot be opened, or None; opening it starts nothing. ROCm has none."""
    if torch.version.hip is not None:
        return None
    library = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return None


def _device_count() -> tuple[int, str]:
    """The number of visible devices, and what torch warned about while it counted them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count()
    return count, "; ".join(str(item.message) for item in caught) or "count is 0"


def _precision_switches() -> list[Switch]:
    switches = [
        Switch("float32_matmul_precision", _matmul_precision, torch.set_float32_matmul_precision),
        attribute("cudnn.allow_tf32", _CUDNN, "allow_tf32", unreadable=True),
    ]
    # torch 2.9 added these finer names beside the two above; both must agree or torch raises on reading.
    if hasattr(_MATMUL, "fp32_precision"):
        switches += [
            attribute("cuda.matmul.fp32_precision", _MATMUL, "fp32_precision"),
            attribute("cudnn.conv.fp32_precision", _CUDNN.conv, "fp32_precision"),
            attribute("cudnn.rnn.fp32_precision", _CUDNN.rnn, "fp32_precision"),
        ]
    return switches


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the finer names were set apart from this one; restoring them comes later
        return "highest"


def _reduction_switches() -> list[Switch]:
    fields = (
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    )
    return [attribute(f"cuda.matmul.{field}", _MATMUL, field) for field in fields if hasattr(_MATMUL, field)]


def _determinism_switches() -> list[Switch]:
    return [
        attribute("cudnn.deterministic", _CUDNN, "deterministic"),
        attribute("cudnn.benchmark", _CUDNN, "benchmark"),
        environment(WORKSPACE),
    ]


def _settings(mode: hal.NumericMode) -> Iterator[tuple[Switch, Any]]:
    reduced = mode.reduced_precision_matmul
    values: dict[str, Any] = {
        "float32_matmul_precision": "high" if reduced else "highest",
        "cudnn.allow_tf32": reduced,
    }
    for switch in _precision_switches():
        yield switch, values.get(switch.name, "tf32" if reduced else "ieee")
    for switch in _reduction_switches():
        yield switch, False
    if mode.deterministic:
        deterministic, benchmark, workspace = _determinism_switches()
        yield deterministic, True
        yield benchmark, False
        current = workspace.read()
        yield workspace, current if current in DETERMINISTIC_WORKSPACES else DETERMINISTIC_WORKSPACES[0]


@hal.hookimpl
def hal_register_backends(register: Callable[[type[hal.TorchBackend]], None]) -> None:
    """Offer CUDA to the registry."""
    register(Cuda)
