"""The hook a plug-in may implement. A plug-in is any installed entry point in the group `aqn`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pluggy

GROUP = "aqn"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Schedule(Protocol):
    """Noise strength over a run: `schedule(step)` is sigma at that step, counted from 0, for `layer` where the
    schedule tells layers apart (None: a layer in the middle).
    """

    def __call__(self, step: int, layer: int | None = None) -> float:
        """Sigma at `step`, a finite number that is not negative."""


ScheduleFactory = Callable[..., Schedule]
Register = Callable[[str, ScheduleFactory], None]


@hookspec
def aqn_register_schedules(register: Register) -> None:
    """Call `register(name, factory)` once for each schedule; the factory takes the options by name."""


Factory = Any  # a factory's keyword options differ from schedule to schedule
