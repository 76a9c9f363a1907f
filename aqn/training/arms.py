"""The ways of training that are compared: the same fault, and noise that differs in place and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aqn.config import AqnConfig
from hal.errors import UsageError

BEFORE: Final = "untrained"  # the model as it came, beside the arms
BASELINE: Final = "baseline"
ARMS: Final = (BASELINE, "noise", "global_decay", "epoch_aware", "guided", "uniform", "targeted")
PHASES: Final = ("rollout", "actor_forward")
LAYER_OUTPUT: Final = "layer"  # in the place of a mode: noise on the layers' outputs instead of their operators


@dataclass(frozen=True)
class Fault:
    """The dead zone the hardware has, in rollout, training and evaluation alike; per token, so that rollout and
    training agree.
    """

    layer: int
    threshold: float
    sparsity: float = 1.0

    def section(self) -> dict[str, Any]:
        """As a section of the configuration."""
        return {"layer": self.layer, "threshold": self.threshold, "sparsity": self.sparsity, "scope": "token"}


def arm_config(
    arm: str,
    fault: Fault | None,
    sigma: float,
    mode: str,
    seed: int,
    layer_sigmas: Mapping[int, float],
) -> AqnConfig | None:
    """The configuration of one arm; None when there is neither fault nor noise. "noise": constant `sigma` on all
    layers; "global_decay" and "epoch_aware": by those schedules; "guided": a scan's `layer_sigmas`, epoch-aware;
    "uniform": their mean on all layers, so that it spends as much noise as guided; "targeted": the faulty layer alone,
    epoch-aware.
    """
    document: dict[str, Any] = {"deadzone": fault.section()} if fault else {}
    noise = _noise(arm, fault, sigma, layer_sigmas)
    if noise is not None:
        place = {"kind": "layer"} if mode == LAYER_OUTPUT else {"mode": mode}
        document["aqn"] = {**noise, **place, "phases": list(PHASES), "seed": seed, "draws": "fast"}
    return AqnConfig.parse(document) if document else None


def require_arms(arms: Sequence[str], fault: Fault | None) -> None:
    """Raise UsageError for an arm that there is not, or that needs a fault and has none."""
    unknown = sorted(set(arms) - set(ARMS))
    if unknown or not arms:
        raise UsageError(f"unknown arms {', '.join(unknown) or '(none given)'}: choose from {', '.join(ARMS)}")
    if fault is None and {"targeted", "guided", "uniform"} & set(arms):
        raise UsageError("arms targeted, guided and uniform need a fault: give --threshold above 0")


def _noise(arm: str, fault: Fault | None, sigma: float, layer_sigmas: Mapping[int, float]) -> dict[str, Any] | None:
    if arm == BASELINE:
        return None
    if arm == "noise":
        return {"sigma": sigma}
    if arm == "guided":
        return {
            "sigma": sigma,
            "layer_specific": True,
            "layer_sigmas": dict(layer_sigmas),
            "schedule": "epoch_aware",
        }
    if arm == "uniform":
        return {"sigma": sum(layer_sigmas.values()) / len(layer_sigmas), "schedule": "epoch_aware"}
    if arm == "targeted" and fault is not None:
        return {"sigma": sigma, "target_layers": [fault.layer], "schedule": "epoch_aware"}
    return {"sigma": sigma, "schedule": arm}
