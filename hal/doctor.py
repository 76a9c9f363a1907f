"""What the doctor finds out: every backend, whether it can run here, and how it would compute."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from hal.backend import TorchBackend
from hal.errors import one_line
from hal.ops import CATALOGUE
from hal.registry import BackendInfo, Registry

SCHEMA = "hal-doctor/1"
UNKNOWN = "unknown"

T = TypeVar("T")


@dataclass(frozen=True)
class Details:
    """What an available backend says of itself: the names of its devices, versions, dtypes and collective;
    the number of operators it offers, those it computes by something better than the default, those it lacks
    with the reason, its known failures, and its numeric switches as they stand.
    """

    device_names: tuple[str, ...]
    versions: Mapping[str, str]
    dtypes: tuple[str, ...]
    collective: str
    operators: int
    native_operators: tuple[str, ...]
    unsupported_operators: Mapping[str, str]
    known_failures: Mapping[str, str]
    numeric_switches: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """One backend or broken plug-in. `details` is None where it cannot run here; `problems` are the questions
    that an available backend failed to answer, with its errors.
    """

    info: BackendInfo
    details: Details | None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything the doctor knows, in the order of registration."""

    python: str
    torch: str
    backends: tuple[Entry, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, ready for json.dumps."""
        backends = [
            asdict(entry.info)
            | {"details": asdict(entry.details) if entry.details else None, "problems": list(entry.problems)}
            for entry in self.backends
        ]
        return {"schema": SCHEMA, "python": self.python, "torch": self.torch, "backends": backends}


def examine(registry: Registry) -> Facts:
    """Ask every backend of `registry` what it is; a backend that fails to answer is described by its error
    and keeps no other from being asked.
    """
    entries = tuple(_examine(registry, info) for info in registry.describe())
    return Facts(platform.python_version(), torch.__version__, entries)


def _examine(registry: Registry, info: BackendInfo) -> Entry:
    if not info.available:
        return Entry(info, None)
    asked = _Questions()
    devices = [asked(f"device {index}", partial(registry.get, info.name, index)) for index in range(info.devices)]
    present = [device for device in devices if device is not None]
    details = _details(present, asked) if present else None
    return Entry(info, details, tuple(asked.problems))


def _details(devices: Sequence[TorchBackend], asked: _Questions) -> Details:
    backend = devices[0]
    return Details(
        device_names=tuple(
            asked(f"name of device {device.index}", device.device_name) or UNKNOWN for device in devices
        ),
        versions=asked("versions", backend.versions) or {},
        dtypes=tuple(str(dtype).removeprefix("torch.") for dtype in backend.dtypes),
        collective=backend.collective,
        operators=len(set(CATALOGUE) - set(backend.unsupported_ops)),
        native_operators=asked("operators", partial(_native, backend)) or (),
        unsupported_operators=dict(backend.unsupported_ops),
        known_failures=dict(backend.known_failures),
        numeric_switches=asked("numeric switches", backend.numeric_switches) or {},
    )


def _native(backend: TorchBackend) -> tuple[str, ...]:
    table = backend.ops
    return tuple(sorted(name for name in CATALOGUE if table.is_native(name)))


class _Questions:
    """Asks one question at a time, and keeps the errors of those that failed."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, subject: str, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except Exception as error:  # noqa: BLE001 -- a doctor reports what a foreign backend raises
            self.problems.append(f"{subject}: {one_line(error)}")
            return None
