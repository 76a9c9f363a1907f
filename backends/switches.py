"""Process-wide settings that change a device's arithmetic: read, pin for a block, put back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Switch:
    """One setting: its `name` in reports, a function that `read`s it and one that `write`s it."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]


def attribute(name: str, owner: Any, field: str, unreadable: Any = None) -> Switch:
    """The setting `owner.field`.

    Where an older and a newer name of one setting disagree, torch raises on reading the older; its value
    is then taken to be `unreadable`.
    """

    def read() -> Any:
        try:
            return getattr(owner, field)
        except RuntimeError:
            return unreadable

    return Switch(name, read, lambda value: setattr(owner, field, value))


def environment(name: str) -> Switch:
    """The environment variable `name`; None means that it is not set."""

    def write(value: str | None) -> None:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

    return Switch(name, lambda: os.environ.get(name), write)


@contextlib.contextmanager
def pinned(settings: Iterable[tuple[Switch, Any]]) -> Iterator[None]:
    """Give every switch its value for the block and restore all former values, also after an exception."""
    settings = list(settings)
    before = [(switch, switch.read()) for switch, _ in settings]
    try:
        for switch, value in settings:
            switch.write(value)
        yield
    finally:
        # In the order of pinning, not backwards: where one switch has two names, writing the older
        # name overwrites the newer one, so the newer one has to come last both times.
        for switch, value in before:
            switch.write(value)


def report(switches: Iterable[Switch]) -> dict[str, str]:
    """The current value of every switch as text, "unset" for a missing environment variable."""
    values = {switch.name: switch.read() for switch in switches}
    return {name: "unset" if value is None else str(value) for name, value in values.items()}
