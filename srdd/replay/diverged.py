"""What a replay raises that cannot be compared."""

from __future__ import annotations

from hal.errors import HalError


class ReplayDivergedError(HalError):
    """The clean copy did not make the calls that the device made, so that the two cannot be compared."""
