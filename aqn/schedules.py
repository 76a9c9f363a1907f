"""How strong the noise is at each step: the built-in schedules. Steps count from 0; a step beyond the last keeps the
last one's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from aqn.hookspecs import Register, Schedule, hookimpl
from hal.errors import UsageError

START = 0.05
FALL = 100.0  # start over end of a decay, as in the documents: 0.05 -> 0.0005
FIRST_EPOCH_FALL = 5.0  # and over the boundary between two epochs: 0.05 -> 0.01
QERL_START, QERL_STAGES = 1e-2, 10

_Curve = Callable[[float], float]


def constant(start: float = START) -> Schedule:
    """`start` at every step."""
    _require_sigmas(start=start)
    return lambda step, layer=None: start


def linear(steps: int, start: float = START, end: float = 0.0) -> Schedule:
    """A straight line from `start` at the first step to `end` at the last."""
    _require_sigmas(start=start, end=end)
    return _over(steps, lambda x: start + (end - start) * x)


def cosine(steps: int, start: float = START, end: float = 0.0) -> Schedule:
    """Half a cosine from `start` down to `end`."""
    _require_sigmas(start=start, end=end)
    return _over(steps, lambda x: end + (start - end) * 0.5 * (1 + math.cos(math.pi * x)))


def global_decay(
    steps: int, start: float | None = None, end: float | None = None, shape: str = "linear", stages: int = QERL_STAGES
) -> Schedule:
    """One decay over the whole run, by default to a hundredth of where it starts. "linear": a straight line from 0.05,
    as in the documents. "exponential": `stages` equal parts of the run, the first silent, the others in geometric
    steps from 0.01, as QeRL (arXiv 2510.11696) has it.
    """
    if shape not in ("linear", "exponential"):
        raise UsageError(f"shape '{shape}' of global_decay is unknown: choose 'linear' or 'exponential'")
    first = start if start is not None else (START if shape == "linear" else QERL_START)
    last = first / FALL if end is None else end
    if shape == "linear":
        return linear(steps, first, last)
    _require_sigmas(positive=True, start=first, end=last)
    if stages < 3:
        raise UsageError(f"global_decay got stages={stages}: give 3 or more, of which the first is silent")
    _require_steps(steps)

    def staged(step: int, layer: int | None = None) -> float:
        stage = min(step * stages // steps, stages - 1)
        return 0.0 if stage == 0 else first * (last / first) ** ((stage - 1) / (stages - 2))

    return staged


def epoch_aware(
    steps: int,
    epochs: int = 2,
    start: float = START,
    end: float | None = None,
    boundaries: Sequence[float] | None = None,
) -> Schedule:
    """Every epoch decays linearly through a range of its own, so that a later epoch does not begin where noise has
    already died out. `boundaries` gives the `epochs` + 1 ends of the ranges; without it they are geometric from `start`
    to `end` (by default a hundredth of it), and for two epochs the documents' 0.05, 0.01, 0.0005 in proportion.
    """
    _require_steps(steps)
    if not 1 <= epochs <= steps:
        raise UsageError(f"epoch_aware got {epochs} epochs in {steps} steps: give 1 to {steps}")
    ends = list(boundaries) if boundaries is not None else _ranges(epochs, start, start / FALL if end is None else end)
    if len(ends) != epochs + 1:
        raise UsageError(f"epoch_aware got {len(ends)} boundaries for {epochs} epochs: give {epochs + 1}")
    for place, value in enumerate(ends):
        _require_sigma(f"boundaries[{place}]", value)

    def ranged(step: int, layer: int | None = None) -> float:
        epoch = min(step * epochs // steps, epochs - 1)
        first = -(-epoch * steps // epochs)  # the epoch's first step and the next one's
        after = -(-(epoch + 1) * steps // epochs)
        share = min(step, after - 1) - first
        return ends[epoch] + (ends[epoch + 1] - ends[epoch]) * share / max(after - 1 - first, 1)

    return ranged


def zone(
    steps: int,
    layers: int,
    start: float = START,
    end: float | None = None,
    edge_share: float = 0.25,
    edge: float = 0.5,
    late_share: float = 0.5,
    late: float = 0.2,
) -> Schedule:
    """Four zones. The first and last `edge_share` of the layers get `edge` times what the middle gets; after
    `late_share` of the steps all get `late` times what they had. Inside that, `start` falls linearly to `end` (by
    default it stays).
    """
    _require_steps(steps)
    if layers < 1:
        raise UsageError(f"zone got layers={layers}: give the number of layers, 1 or more")
    for name, share in (("edge_share", edge_share), ("late_share", late_share)):
        if not 0 <= share <= 1:
            raise UsageError(f"zone got {name}={share}: give a share from 0 to 1")
    if edge_share > 0.5:
        raise UsageError(f"zone got edge_share={edge_share}: both edges together cannot exceed all layers; at most 0.5")
    _require_sigmas(edge=edge, late=late)
    base = linear(steps, start, start if end is None else end)
    width = round(edge_share * layers)

    def zoned(step: int, layer: int | None = None) -> float:
        outer = layer is not None and (layer < width or layer >= layers - width)
        return base(step) * (edge if outer else 1.0) * (late if step >= late_share * steps else 1.0)

    return zoned


@hookimpl
def aqn_register_schedules(register: Register) -> None:
    """Register the built-in schedules through the door that third parties use."""
    for factory in (constant, linear, cosine, global_decay, epoch_aware, zone):
        register(factory.__name__, factory)


def _ranges(epochs: int, start: float, end: float) -> list[float]:
    _require_sigmas(positive=True, start=start, end=end)
    if epochs == 2 and math.isclose(start, end * FALL):
        return [start, start / FIRST_EPOCH_FALL, end]
    return [start * (end / start) ** (boundary / epochs) for boundary in range(epochs + 1)]


def _over(steps: int, curve: _Curve) -> Schedule:
    _require_steps(steps)
    return lambda step, layer=None: curve(min(step, steps - 1) / max(steps - 1, 1))


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise UsageError(f"a schedule over {steps} steps: give the run's number of steps, 1 or more")


def _require_sigmas(*, positive: bool = False, **values: float) -> None:
    for name, value in values.items():
        _require_sigma(name, value, positive)


def _require_sigma(name: str, value: float, positive: bool = False) -> None:
    if not (math.isfinite(value) and (value > 0 if positive else value >= 0)):
        rule = "greater than 0" if positive else "not negative"
        raise UsageError(f"schedule option {name} is {value}: give a finite number that is {rule}")
