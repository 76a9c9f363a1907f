"""Time device work by the device's own clock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import hal


@contextlib.contextmanager
def event_timer(module: Any, index: int) -> Iterator[hal.Timer]:
    """Measure the block on the current stream of device `index` with two events of `module`.

    `module` is torch.cuda or torch.npu. Work queued before the block is not counted.
    """
    timer = hal.Timer()
    stream = module.current_stream(index)
    start, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
    start.record(stream)
    yield timer
    end.record(stream)
    end.synchronize()
    timer.seconds = start.elapsed_time(end) / 1000.0
