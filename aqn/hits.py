"""Where noise was, and whether that is where it was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from aqn.config import Noise
from hal.errors import HookError


class Hit(NamedTuple):
    """What `Injection.counts` counts by: the phase, the layer and the operator ("output" for a layer's own output,
    "weight" for a norm's weight).
    """

    phase: str
    layer: int
    operator: str


class Hits:
    """`counts` says how often each `Hit` was disturbed."""

    def __init__(self) -> None:
        self.counts: Counter[Hit] = Counter()
        self._reached: set[tuple[int, str]] = set()

    def reach(self, layer: int, operator: str) -> None:
        """Note that the model ran `operator` of `layer` in a noisy phase, whatever sigma was then."""
        self._reached.add((layer, operator))

    def require(self, noise: Noise, layers: Sequence[int]) -> None:
        """Raise HookError when one of `layers` never ran an operator that `noise` is for, or when an operator that was
        listed by name never ran.
        """
        where = ", ".join(noise.phases)
        if not self._reached:
            hint = " (weight noise needs a phase set by during())" if noise.kind == "weight" else ""
            raise HookError(f"noise hit nothing: no layer ran in the phases {where}{hint}; check phases and layers")
        missed = [layer for layer in layers if not any(at == layer for at, _ in self._reached)]
        if missed:
            wanted = ", ".join(noise.chosen_operators) if noise.kind == "operator" else noise.kind
            raise HookError(
                f"noise never hit layer {missed[0]} (and {len(missed) - 1} more): no {wanted} ran there in the phases "
                f"{where}; choose operators that the model runs"
            )
        silent = [name for name in noise.operators or () if not any(hit == name for _, hit in self._reached)]
        if silent:
            raise HookError(f"operator '{silent[0]}' was asked for by name and never ran: leave it out")
