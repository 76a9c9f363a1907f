"""What a backend is: the dozen things an accelerator must answer for."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch

from hal.errors import BackendUnavailableError, UsageError, one_line
from hal.ops.catalogue import OpTable

Status = Literal["stable", "beta", "experimental"]


@dataclass(frozen=True)
class Probe:
    """Whether a backend can run here: `available`, the `reason` in one line (what is missing and what to do, or
    what was found), and the number of `devices`.
    """

    available: bool
    reason: str
    devices: int = 0


@dataclass(frozen=True)
class MemoryStats:
    """Device memory in bytes: `allocated` now, `peak` since the last reset, `total` of the device."""

    allocated: int
    peak: int
    total: int


@dataclass(frozen=True)
class NumericMode:
    """How arithmetic is to be done: `deterministic` asks for the same bits on every run,
    `reduced_precision_matmul` allows float32 matrix products and convolutions in a shorter format (TF32, HF32).
    """

    deterministic: bool = True
    reduced_precision_matmul: bool = False


@dataclass
class Timer:
    """Result of `TorchBackend.timer`: `seconds` is valid after the `with` block has ended."""

    seconds: float = field(default=float("nan"))


class TorchBackend:
    """Base of every backend: a torch device type together with what the rest of the project needs to know about
    it.

    A subclass sets the class attributes and overrides `probe`, and whichever of the other methods its device
    answers differently from torch's generic device module. Instances are cheap; creating one selects nothing
    and allocates nothing.
    """

    name: ClassVar[str]
    device_type: ClassVar[str]
    status: ClassVar[Status] = "experimental"
    collective: ClassVar[str] = "gloo"
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16, torch.float16)
    unsupported_ops: ClassVar[Mapping[str, str]] = {}
    known_failures: ClassVar[Mapping[str, str]] = {}

    def __init__(self, index: int = 0) -> None:
        self.index = index

    # -- identity -----------------------------------------------------------------------------------

    @classmethod
    def probe(cls) -> Probe:
        """Say whether the backend can run here and why; must not import a vendor module when it is absent,
        allocate memory or raise.
        """
        raise NotImplementedError(f"{cls.__name__} does not override probe()")

    @classmethod
    def load(cls) -> None:
        """Import whatever makes `torch.device(device_type)` usable; called once the probe has said available,
        before any other method.
        """

    @property
    def device(self) -> torch.device:
        """The torch device of this instance, index included."""
        return torch.device(self.device_type, self.index)

    def device_name(self) -> str:
        """Marketing name of the device, as its driver gives it."""
        return str(self._module.get_device_name(self.index))

    def versions(self) -> dict[str, str]:
        """Versions of the driver, runtime and Python packages that decide this device's numerics."""
        return {"torch": torch.__version__}

    def for_model(self, model: torch.nn.Module) -> TorchBackend:
        """The same backend on the very device that holds the model's parameters; raises UsageError when that is
        another kind of device: nothing is moved silently.
        """
        parameter = next(model.parameters(), None)
        if parameter is None:
            return self
        if parameter.device.type != self.device_type:
            raise UsageError(
                f"the model is on '{parameter.device}', backend '{self.name}' runs on '{self.device_type}': "
                "move the model there, or name the backend it is on"
            )
        index = parameter.device.index  # None in host memory, which has one place for every device that shares it
        return self if index in (None, self.index) else type(self)(index)

    # -- execution ----------------------------------------------------------------------------------

    def synchronize(self) -> None:
        """Wait until all work queued on the device has ended."""
        self._module.synchronize(self.index)

    def memory(self) -> MemoryStats:
        """Current, peak and total device memory in bytes."""
        module, index = self._module, self.index
        return MemoryStats(
            allocated=int(module.memory_allocated(index)),
            peak=int(module.max_memory_allocated(index)),
            total=int(module.mem_get_info(index)[1]),
        )

    def free_memory(self) -> int:
        """How many more bytes this process can take on the device, as far as is known."""
        return int(self._module.mem_get_info(self.index)[0])

    def reset_peak_memory(self) -> None:
        """Start a new measurement of `memory().peak`."""
        self._module.reset_peak_memory_stats(self.index)

    def generator(self, seed: int) -> torch.Generator:
        """A new random generator on this device, seeded; its stream is the device's own and differs between
        backends (use `hal.noise` for streams that agree).
        """
        return torch.Generator(device=self.device).manual_seed(seed)

    @contextlib.contextmanager
    def timer(self) -> Iterator[Timer]:
        """Measure the wall time in seconds of the device work issued inside the block, queued work included."""
        timer = Timer()
        self.synchronize()
        start = time.perf_counter()
        yield timer
        self.synchronize()
        timer.seconds = time.perf_counter() - start

    # -- numerics -----------------------------------------------------------------------------------

    def numeric_switches(self) -> dict[str, str]:
        """Current value of every switch that changes this device's arithmetic, for reports."""
        return {"deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled())}

    @contextlib.contextmanager
    def numeric_mode(self, mode: NumericMode) -> Iterator[None]:
        """Run the block under `mode` and restore the former state afterwards, also after an exception;
        subclasses add their device's switches around this.
        """
        enabled = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        # An operator without a deterministic form still runs: the instability probe judges what it does.
        torch.use_deterministic_algorithms(mode.deterministic, warn_only=True)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
                yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)

    # -- operators ----------------------------------------------------------------------------------

    def op_overrides(self) -> Mapping[str, Callable[..., Any]]:
        """Operators of the catalogue that this backend computes by something better than the default."""
        return {}

    @property
    def ops(self) -> OpTable:
        """The catalogue's operators as this backend runs them: `backend.ops.matmul(a, b)`."""
        return OpTable(self.name, self.op_overrides(), self.unsupported_ops)

    # -- for the registry ---------------------------------------------------------------------------

    @property
    def _module(self) -> ModuleType:
        module: ModuleType = torch.get_device_module(self.device_type)
        return module

    @classmethod
    def at(cls, device: str | int | torch.device | None) -> TorchBackend:
        """An instance on `device`: an index, a string such as "npu:1", a torch.device, or None for index 0;
        raises UsageError for another device type and BackendUnavailableError when the backend or that index
        does not exist here.
        """
        index = cls._index_of(device)
        probe = probe_of(cls)
        if not probe.available:
            raise BackendUnavailableError(f"backend '{cls.name}' is unavailable: {probe.reason}")
        if index >= probe.devices:
            raise BackendUnavailableError(
                f"device {index} of backend '{cls.name}' does not exist: this machine has "
                f"{probe.devices} (indices 0 to {probe.devices - 1})"
            )
        try:
            cls.load()
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendUnavailableError(
                f"backend '{cls.name}' is unavailable: it does not load ({one_line(error)})"
            ) from error
        return cls(index)

    @classmethod
    def _index_of(cls, device: str | int | torch.device | None) -> int:
        if device is None:
            return 0
        text = str(device)
        kinds = "|".join(re.escape(kind) for kind in (cls.device_type, cls.name))
        match = re.fullmatch(rf"(?:{kinds})|(?:(?:{kinds}):)?([0-9]{{1,9}})", text)
        if match is None:
            raise UsageError(
                f"device '{text}' does not belong to backend '{cls.name}': give an index, "
                f"'{cls.device_type}' or '{cls.device_type}:INDEX'"
            )
        return int(match[1] or 0)


def probe_of(backend: type[TorchBackend]) -> Probe:
    """What the backend's probe says. A probe that raises, or answers what no probe may, makes its backend
    unavailable with that as the reason, and harms no other.
    """
    try:
        probe: object = backend.probe()
    except Exception as error:  # noqa: BLE001 -- a foreign probe may raise anything; the reason carries it
        return Probe(False, f"its probe failed: {one_line(error)}")
    if not isinstance(probe, Probe):
        return Probe(False, f"its probe returned {type(probe).__name__}, not hal.Probe")
    if probe.available and probe.devices < 1:
        return Probe(False, f"its probe says available with {probe.devices} devices ({probe.reason})")
    return probe
