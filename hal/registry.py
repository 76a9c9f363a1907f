"""Find backends through entry points; keep a broken plug-in from harming the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy
import torch

from hal import hookspecs
from hal.backend import TorchBackend, probe_of
from hal.errors import UnknownBackendError, UsageError, one_line

HOST = "cpu-reference"
AUTO = "auto"
DISTRIBUTION = "srdd-hal"


@dataclass(frozen=True)
class BackendInfo:
    """One line of the doctor: a backend's `name`, its `status` (stable, beta, experimental, or broken for a
    plug-in that failed to load), whether it is `available` here and the `reason`, how many `devices` it has,
    and the `plugin` that provides it.
    """

    name: str
    status: str
    available: bool
    reason: str
    devices: int
    plugin: str


@dataclass(frozen=True)
class BrokenPlugin:
    """A plug-in that could not be loaded or registered, with the distribution it came from and its error in one
    line.
    """

    name: str
    source: str
    error: str


class Registry:
    """The backends that a set of entry points provides; built once, read-only afterwards."""

    def __init__(self, plugins: Iterable[EntryPoint]) -> None:
        self.backends: dict[str, type[TorchBackend]] = {}
        self.broken: list[BrokenPlugin] = []
        self._provider: dict[str, str] = {}
        for plugin in plugins:
            self._add(plugin)

    def get(self, name: str, device: str | int | torch.device | None = None) -> TorchBackend:
        """The backend of that name on that device; see `hal.get_backend`."""
        return self._class_of(self._resolve_auto() if name == AUTO else name).at(device)

    def describe(self) -> list[BackendInfo]:
        """Every backend and every broken plug-in, in the order of registration."""
        healthy = []
        for name, backend in self.backends.items():
            probe = probe_of(backend)
            healthy.append(
                BackendInfo(name, backend.status, probe.available, probe.reason, probe.devices, self._provider[name])
            )
        broken = [BackendInfo(plugin.name, "broken", False, plugin.error, 0, plugin.source) for plugin in self.broken]
        return healthy + broken

    def _add(self, plugin: EntryPoint) -> None:
        source = _source_of(plugin)
        try:
            accepted = self._collect(plugin)
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- a foreign plug-in may raise anything; it is reported by name
            self.broken.append(BrokenPlugin(plugin.name, source, one_line(error)))
            return
        for backend in accepted:
            self.backends[backend.name] = backend
            self._provider[backend.name] = source

    def _collect(self, plugin: EntryPoint) -> list[type[TorchBackend]]:
        accepted: list[type[TorchBackend]] = []
        # A manager of its own: what a plug-in leaves behind when it fails half way goes with it.
        manager = pluggy.PluginManager(hookspecs.GROUP)
        manager.add_hookspecs(hookspecs)
        module = plugin.load()
        manager.register(module, name=plugin.name)
        manager.check_pending()
        if not manager.get_hookcallers(module):
            raise UsageError(f"{plugin.value} has no function hal_register_backends marked with hal.hookimpl")
        manager.hook.hal_register_backends(register=lambda backend: accepted.append(self._checked(backend, accepted)))
        return accepted

    def _checked(self, backend: Any, accepted: list[type[TorchBackend]]) -> type[TorchBackend]:
        if not (isinstance(backend, type) and issubclass(backend, TorchBackend)):
            raise UsageError(f"register() takes a subclass of hal.TorchBackend, got {backend!r}")
        for attribute in ("name", "device_type"):
            if not isinstance(getattr(backend, attribute, None), str) or not getattr(backend, attribute):
                raise UsageError(f"{backend.__module__}.{backend.__name__} must set the string attribute '{attribute}'")
        if backend.name in (*self.backends, *(other.name for other in accepted), AUTO):
            owner = self._provider.get(backend.name, "this plug-in" if backend.name != AUTO else "hal")
            raise UsageError(f"backend name '{backend.name}' is already taken by {owner}: choose another name")
        return backend

    def _class_of(self, name: str) -> type[TorchBackend]:
        if name in self.backends:
            return self.backends[name]
        known = "; ".join(f"{info.name} ({'available' if info.available else info.reason})" for info in self.describe())
        raise UnknownBackendError(f"unknown backend '{name}'; known: {known or 'none'}")

    def _resolve_auto(self) -> str:
        ready = [info.name for info in self.describe() if info.available and info.name != HOST]
        if len(ready) > 1:
            raise UsageError(f"backend 'auto' is ambiguous here: {', '.join(ready)} are available; name one")
        return ready[0] if ready else HOST


def _source_of(plugin: EntryPoint) -> str:
    if plugin.dist is None:
        return plugin.value
    return f"{plugin.dist.name} {plugin.dist.version}"


def installed_plugins() -> list[EntryPoint]:
    """All installed entry points of the group: this distribution's own first, so that nobody takes their names,
    the others by name, so that the order does not depend on the search path.
    """
    return sorted(
        entry_points(group=hookspecs.GROUP),
        key=lambda plugin: (plugin.dist is None or plugin.dist.name != DISTRIBUTION, plugin.name, plugin.value),
    )


@cache
def default_registry() -> Registry:
    """The registry over all installed entry points, built at first use."""
    return Registry(installed_plugins())


def get_backend(name: str, device: str | int | torch.device | None = None) -> TorchBackend:
    """The backend called `name`, ready on `device` (an index, "npu:1", a torch.device, or None for the first).
    "auto" takes the one available accelerator, or cpu-reference when there is none, and raises UsageError when
    several are. Raises UnknownBackendError with the known ones listed, or BackendUnavailableError with the
    reason; it never falls back to another device.
    """
    return default_registry().get(name, device)


def list_backends() -> list[BackendInfo]:
    """Every registered backend, available or not and why, and every plug-in that failed to load."""
    return default_registry().describe()
