"""Hardware abstraction layer: what a backend is, which operators exist, how to hook a model."""

from hal import (
    _torch,  # noqa: F401  -- must come first: it keeps a broken device extension from breaking torch
    noise,
    ops,
)
from hal.backend import MemoryStats, NumericMode, Probe, Timer, TorchBackend
from hal.errors import (
    BackendUnavailableError,
    HalError,
    HookError,
    ModelError,
    UnknownBackendError,
    UnsupportedError,
    UsageError,
)
from hal.hookspecs import hookimpl
from hal.host import HostBackend
from hal.registry import BackendInfo, Registry, get_backend, list_backends

__all__ = [
    "BackendInfo",
    "BackendUnavailableError",
    "HalError",
    "HookError",
    "HostBackend",
    "MemoryStats",
    "ModelError",
    "NumericMode",
    "Probe",
    "Registry",
    "Timer",
    "TorchBackend",
    "UnknownBackendError",
    "UnsupportedError",
    "UsageError",
    "get_backend",
    "hookimpl",
    "list_backends",
    "noise",
    "ops",
]
