"""Find schedules by name: the built-in ones and those of installed plug-ins."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from aqn import hookspecs
from aqn import schedules as built_in
from aqn.hookspecs import Schedule, ScheduleFactory
from hal.errors import UsageError, one_line


class ScheduleRegistry:
    """The schedules of the built-in plug-in and of `plugins`; one that fails is kept in `broken`, name and reason,
    and harms no other.
    """

    def __init__(self, plugins: Iterable[EntryPoint] = ()) -> None:
        self.factories: dict[str, ScheduleFactory] = self._collect("built-in", built_in)
        self.broken: dict[str, str] = {}
        for plugin in plugins:
            self._add(plugin)

    def make(self, name: str, **options: Any) -> Schedule:
        """The schedule called `name` with its options; a wrong name or option is a UsageError that lists the right
        ones.
        """
        if name not in self.factories:
            raise UsageError(f"unknown schedule '{name}': {self._hint(name)}")
        factory = self.factories[name]
        signature = inspect.signature(factory)
        try:
            signature.bind(**options)
        except TypeError as error:
            raise UsageError(f"schedule {name}{signature} does not take these options: {error}") from error
        return _checked(name, factory(**options))

    def options(self, name: str) -> frozenset[str]:
        """The names of the options that schedule `name` takes; none for an unknown one."""
        factory = self.factories.get(name)
        return frozenset(inspect.signature(factory).parameters) if factory else frozenset()

    def _add(self, plugin: EntryPoint) -> None:
        try:
            self.factories |= self._collect(plugin.name, plugin.load())
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- a foreign plug-in may raise anything; it is reported by name
            self.broken[plugin.name] = one_line(error)

    def _collect(self, source: str, plugin: Any) -> dict[str, ScheduleFactory]:
        manager = pluggy.PluginManager(hookspecs.GROUP)
        manager.add_hookspecs(hookspecs)
        manager.register(plugin, name=source)
        manager.check_pending()
        if not manager.get_hookcallers(plugin):
            raise UsageError("it has no function aqn_register_schedules marked with aqn.hookimpl")
        found: dict[str, ScheduleFactory] = {}

        def register(name: str, factory: ScheduleFactory) -> None:
            if name in getattr(self, "factories", {}) or name in found:
                raise UsageError(f"schedule name '{name}' is already taken: choose another name")
            if not callable(factory):
                raise UsageError(f"schedule '{name}' is registered with {factory!r}: register(name, factory)")
            found[name] = factory

        manager.hook.aqn_register_schedules(register=register)
        return found

    def _hint(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.factories, n=1)
        broken = "".join(f"; plug-in {plugin} is broken ({reason})" for plugin, reason in self.broken.items())
        meant = f"did you mean '{close[0]}'? " if close else ""
        return f"{meant}choose one of: {', '.join(self.factories)}{broken}"


def _checked(name: str, schedule: Schedule) -> Schedule:
    """Refuse, at the step where it happens, a strength that no noise can have."""

    def checked(step: int, layer: int | None = None) -> float:
        if step < 0:
            raise UsageError(f"schedule {name} was asked for step {step}: steps count from 0")
        sigma = float(schedule(step, layer))
        if not (math.isfinite(sigma) and sigma >= 0):
            raise UsageError(f"schedule {name} gives sigma {sigma} at step {step}: it must be finite and not negative")
        return sigma

    return checked


@cache
def default_registry() -> ScheduleRegistry:
    """The registry over all installed entry points, built at first use."""
    return ScheduleRegistry(sorted(entry_points(group=hookspecs.GROUP), key=lambda plugin: (plugin.name, plugin.value)))


def schedule(name: str, **options: Any) -> Schedule:
    """The schedule called `name`: `schedule("global_decay", steps=116)(0)` is 0.05. Options are those of the functions
    in `aqn.schedules`; plug-ins add more in the entry-point group `aqn`.
    """
    return default_registry().make(name, **options)
