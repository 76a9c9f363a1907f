"""What a training comparison compares, and the record of it that its folder holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aqn.training.arms import Fault
from aqn.training.recipe import Recipe

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Study:
    """What is compared: a checkpoint `model`, a `fault` (or none), the `arms`, `seeds` of each, the noise `sigma` and
    `mode`, the guide's `layer_sigmas`, and the `recipe` all share.
    """

    model: Path
    fault: Fault | None
    arms: tuple[str, ...]
    seeds: int
    sigma: float
    mode: str
    layer_sigmas: Mapping[int, float]
    recipe: Recipe
    dtype: str = "float32"

    def counter(self, progress: Callable[[int, int], None]) -> Report:
        """What tells `progress(done, total)` of every step, over all seeds and arms."""
        total = self.seeds * len(self.arms) * self.recipe.steps

        def report(arm: str, seed: int, step: int) -> None:
            progress((seed * len(self.arms) + self.arms.index(arm)) * self.recipe.steps + step, total)

        return report

    def settings(self) -> dict[str, Any]:
        """What a run depends on, for the folder's record: a folder holds runs of one setting only."""
        return {
            "model": self.model.name,
            "fault": asdict(self.fault) if self.fault else None,
            "sigma": self.sigma,
            "mode": self.mode,
            "layer_sigmas": {str(layer): sigma for layer, sigma in self.layer_sigmas.items()},
            "recipe": asdict(self.recipe),
            "dtype": self.dtype,
        }
