"""Which dead zones and which noise an experiment compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aqn.config import AqnConfig

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """Which `layers` get a dead zone of which `thresholds`, the noise `sigma`, what the noise disturbs (`kind`), and
    over how many `samples` and `seeds`.
    """

    layers: tuple[int, ...] = (3, 7, 10)
    thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)
    sigma: float = 0.01
    kind: Literal["operator", "layer"] = "operator"
    samples: int = 50
    seeds: int = 8
    draws: Literal["exact", "fast"] = "fast"

    def points(self) -> list[tuple[int, float]]:
        """All operating points."""
        return [(layer, threshold) for layer in self.layers for threshold in self.thresholds]

    def config(
        self, layer: int, threshold: float, seed: int, noisy: Sequence[int] | None, phases: Sequence[str]
    ) -> AqnConfig:
        """The dead zone at `layer`, and noise of this plan on the layers `noisy` in `phases` (None: no noise)."""
        document: dict[str, Any] = {"deadzone": {"layer": layer, "threshold": threshold}}
        if noisy is not None:
            document["aqn"] = {
                "target_layers": list(noisy),
                "sigma": self.sigma,
                "kind": self.kind,
                "phases": list(phases),
                "seed": seed,
                "draws": self.draws,
            }
        return AqnConfig.parse(document)
