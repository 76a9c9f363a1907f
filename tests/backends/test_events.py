from __future__ import annotations

import math

import pytest

from backends.events import event_timer


class Clock:
    """Stands in for torch.cuda or torch.npu: a stream of device work with a clock that only the test moves."""

    def __init__(self):
        self.milliseconds = 0.0
        self.streams = []

    def current_stream(self, index):
        self.streams.append(index)
        return self

    def Event(self, enable_timing):
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, clock):
        self.clock = clock
        self.at = math.nan
        self.synchronized = False

    def record(self, stream):
        assert stream is self.clock
        self.at = self.clock.milliseconds

    def synchronize(self):
        self.synchronized = True

    def elapsed_time(self, end):
        assert end.synchronized, "an event must be waited for before it is read"
        return end.at - self.at


def test_seconds_are_those_between_the_events():
    clock = Clock()
    with event_timer(clock, 3) as timer:
        assert math.isnan(timer.seconds)
        clock.milliseconds = 250.0
    assert timer.seconds == 0.25
    assert clock.streams == [3], "both events belong to the stream that was current at the start"


def fail_within(clock):
    with event_timer(clock, 0):
        raise ZeroDivisionError


def test_an_exception_passes_through():
    with pytest.raises(ZeroDivisionError):
        fail_within(Clock())
