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
from hal.backend import TorchBackend
from hal.errors import UnknownBackendError, UsageError

HOST = "cpu-reference"
AUTO = "auto"


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
    """A plug-in that could not be loaded or registered, with the distribution it came from and its error in
    one line.
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
        self._manager = pluggy.PluginManager(hookspecs.GROUP)
        self._manager.add_hookspecs(hookspecs)
        for plugin in plugins:
            self._add(plugin)

    def get(self, name: str, device: str | int | torch.device | None = None) -> TorchBackend:
        """The backend of that name on that device; see `hal.get_backend`."""
        return self._class_of(self._resolve_auto() if name == AUTO else name).at(device)

    def describe(self) -> list[BackendInfo]:
        """Every backend and every broken plug-in, in the order of registration."""
        healthy = []
        for name, backend in self.backends.items():
            probe = backend.probe()
            healthy.append(
                BackendInfo(name, backend.status, probe.available, probe.reason, probe.devices, self._provider[name])
            )
        broken = [BackendInfo(plugin.name, "broken", False, plugin.error, 0, plugin.source) for plugin in self.broken]
        return healthy + broken

    def _add(self, plugin: EntryPoint) -> None:
        source = _source_of(plugin)
        accepted: list[type[TorchBackend]] = []
        try:
            module = plugin.load()
            self._manager.register(module, name=plugin.name)
            others = [other for other in self._manager.get_plugins() if other is not module]
            hook = self._manager.subset_hook_caller("hal_register_backends", others)
            hook(register=lambda backend: accepted.append(self._checked(backend, accepted)))
        except Exception as error:  # noqa: BLE001 -- whatever a foreign plug-in raises is reported by name, not passed on
            self._forget(plugin.name)
            self.broken.append(BrokenPlugin(plugin.name, source, _one_line(error)))
            return
        for backend in accepted:
            self.backends[backend.name] = backend
            self._provider[backend.name] = source

    def _checked(self, backend: Any, accepted: list[type[TorchBackend]]) -> type[TorchBackend]:
        if not (isinstance(backend, type) and issubclass(backend, TorchBackend)):
            raise UsageError(f"register() takes a subclass of hal.TorchBackend, got {backend!r}")
        for attribute in ("name", "device_type"):
            if not isinstance(getattr(backend, attribute, None), str):
                raise UsageError(f"{backend.__module__}.{backend.__name__} must set the string attribute '{attribute}'")
        if backend.name in (*self.backends, *(other.name for other in accepted), AUTO):
            owner = self._provider.get(backend.name, "this plug-in" if backend.name != AUTO else "hal")
            raise UsageError(f"backend name '{backend.name}' is already taken by {owner}: choose another name")
        return backend

    def _forget(self, plugin_name: str) -> None:
        if self._manager.has_plugin(plugin_name):
            self._manager.unregister(name=plugin_name)

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


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"


@cache
def default_registry() -> Registry:
    """The registry over all installed entry points, built at first use."""
    return Registry(entry_points(group=hookspecs.GROUP))


def get_backend(name: str, device: str | int | torch.device | None = None) -> TorchBackend:
    """The backend called `name`, ready on `device` (an index, "npu:1", a torch.device, or None for the
    first). "auto" takes the one available accelerator, or cpu-reference when there is none, and raises
    UsageError when several are. Raises UnknownBackendError with the known ones listed, or
    BackendUnavailableError with the reason; it never falls back to another device.
    """
    return default_registry().get(name, device)


def list_backends() -> list[BackendInfo]:
    """Every registered backend, available or not and why, and every plug-in that failed to load."""
    return default_registry().describe()
