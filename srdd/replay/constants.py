"""Would another constant put a module's values right? An epsilon, a softmax scale or a slope is one number; a kernel
that was given another one is wrong in every element, and no element alone says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scipy.optimize import minimize_scalar
from torch import nn

from srdd.measurements import WrongConstant
from srdd.replay.module import Replay

# Factors of two that are tried either way: 0.1 for 1e-12 is 37.
OCTAVES = 40
STEP = 2
# Relative precision of the factor found: what it leaves is below the rounding of float32.
PRECISION = 1e-8
WINDOW = "sliding_window"  # which a kernel may not know
NO_WINDOW = 2**31 - 1  # in tokens


def repairing_constant(
    module: nn.Module, replay: Callable[[], Replay], within_rounding: Callable[[Replay], bool]
) -> WrongConstant | None:
    """Which constant of `module`, a clean copy, the device must have used instead of the configured one for its values
    to be explained: `replay()` replays the module as it stands, `within_rounding` judges the result. None when no
    single constant explains them.
    """
    window = _window_of(module)
    if window is not None:
        ignored = WrongConstant(WINDOW, float(window), math.inf)
        if explains(module, ignored, replay, within_rounding):
            return ignored
    for name, configured in constants_of(module).items():
        found = _best(module, name, configured, replay)
        if found is not None and explains(module, found, replay, within_rounding):
            return found
    return None


def explains(
    module: nn.Module,
    constant: WrongConstant,
    replay: Callable[[], Replay],
    within_rounding: Callable[[Replay], bool],
) -> bool:
    """Whether the device's values are those of `module` with that constant."""
    with _held(module, constant.name, constant.acting):
        return within_rounding(replay())


def constants_of(module: nn.Module) -> dict[str, float]:
    """The module's numbers, without those of dropout, which does nothing in evaluation."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, float) and 0 < value < math.inf and "dropout" not in name
    }


def _window_of(module: nn.Module) -> int | None:
    """How many tokens back the attention `module` looks, if that is limited."""
    window = getattr(_holder(module, WINDOW), WINDOW, None)
    return window if isinstance(window, int) else None


def _best(module: nn.Module, name: str, configured: float, replay: Callable[[], Replay]) -> WrongConstant | None:
    """The value of one constant that comes nearest to the device's values: by octaves, then by Brent's method."""

    def miss(octaves: float) -> float:
        with _held(module, name, configured * 2.0**octaves):
            return _distance(replay())

    start = miss(0.0)
    if miss(1.0) == start == miss(-1.0):  # not read by this module's own arithmetic
        return None
    coarse = min(range(-OCTAVES, OCTAVES + 1, STEP), key=miss)
    fine = minimize_scalar(
        miss, bounds=(coarse - STEP, coarse + STEP), method="bounded", options={"xatol": PRECISION, "maxiter": 80}
    )
    return WrongConstant(name, configured, configured * 2.0 ** float(fine.x))


def _distance(replay: Replay) -> float:
    """Root of the summed squares of what the replay misses."""
    return math.sqrt(sum(float(error.square().sum()) for error in replay.errors()))


@contextmanager
def _held(module: nn.Module, name: str, value: float) -> Iterator[None]:
    holder = _holder(module, name)
    before = getattr(holder, name)
    setattr(holder, name, NO_WINDOW if math.isinf(value) else value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def _holder(module: nn.Module, name: str) -> Any:
    """What holds that constant: the module or, if it has none of that name, its configuration."""
    return module if name in vars(module) else getattr(module, "config", module)
