"""The hooks a plug-in may implement. A plug-in is any installed entry point in the group `hal`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from hal.backend import TorchBackend

GROUP = "hal"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def hal_register_backends(register: Callable[[type[TorchBackend]], None]) -> None:
    """Call `register(BackendClass)` once for each backend this plug-in provides."""
