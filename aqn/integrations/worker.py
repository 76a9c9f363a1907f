"""What happens beside the model in an engine's worker: noise and dead zone come, change their step and go."""

from __future__ import annotations

from typing import Any

from aqn.config import AqnConfig
from aqn.injection import Injection
from hal.engines.worker import EngineWorker, worker_function
from hal.errors import EngineError, UsageError

_KEY = "aqn"


@worker_function
def install(
    worker: EngineWorker, document: dict[str, Any], steps: int | None = None, epochs: int | None = None
) -> dict[str, Any]:
    """Put the configuration `document` into the model, in the phase "rollout" at step 0, in place of one that is
    there; returns `state`. Raises EngineError where hooks would not run, UsageError for a configuration that cannot
    hold in a rollout.
    """
    worker.require_hooks()
    config = AqnConfig.parse(document)
    _require_rollout(config, worker.ranks)
    injection = Injection(worker.model, config, steps, epochs)
    _take(worker)
    injection.__enter__()
    worker.state[_KEY] = injection
    injection.phase = "rollout"
    return state(worker)


@worker_function
def set_step(worker: EngineWorker, step: int, phase: str = "rollout") -> dict[str, Any]:
    """Go to a step, counted from 0, in a phase; returns `state`."""
    injection = _installed(worker)
    injection.phase = phase  # type: ignore[assignment]  # an unknown one is refused by the setter
    injection.step = step
    return state(worker)


@worker_function
def state(worker: EngineWorker) -> dict[str, Any]:
    """What `describe` says of the injection in force."""
    return describe(_installed(worker))


def describe(injection: Injection) -> dict[str, Any]:
    """The `step`, `phase` and `sigma` in force; `hits`, a list of [phase, layer, operator, how often] since the
    installation; and of the dead zone its `calls`, how many values `would_be_dead`, and how many of them `survived`.
    """
    zone = injection.deadzone
    return {
        "step": injection.step,
        "phase": injection.phase,
        "sigma": injection.sigma,
        "hits": [[*hit, count] for hit, count in sorted(injection.counts.items())],
        "deadzone": {
            "calls": zone.calls if zone else 0,
            "would_be_dead": zone.would_be_dead if zone else 0,
            "survived": round(zone.survival_rate * zone.would_be_dead) if zone and zone.would_be_dead else 0,
        },
    }


@worker_function
def remove(worker: EngineWorker, check: bool = True) -> dict[str, Any] | None:
    """Take everything out of the model again; returns the last `state`, None when nothing was there. With `check`,
    raises HookError when noise or dead zone never acted.
    """
    if _KEY not in worker.state:
        return None
    last = state(worker)
    injection = _take(worker)
    if check and injection is not None:
        injection.require_hits()
    return last


def _installed(worker: EngineWorker) -> Injection:
    injection = worker.state.get(_KEY)
    if not isinstance(injection, Injection):
        raise EngineError("there is neither noise nor dead zone in this engine: install a configuration first")
    return injection


def _take(worker: EngineWorker) -> Injection | None:
    """Remove what is there, without asking whether it acted."""
    injection: Injection | None = worker.state.pop(_KEY, None)
    if injection is not None:
        injection.detach()
    return injection


def _require_rollout(config: AqnConfig, ranks: int) -> None:
    zone, noise = config.dead_zone, config.noise
    if zone is not None and zone.scope != "token":
        raise UsageError(
            "deadzone.scope is 'tensor': in an engine the tensor holds whatever requests share the step, so rollout "
            "and trainer would disagree; write scope: token"
        )
    if noise is not None and noise.draws != "exact" and ranks > 1:
        raise UsageError(
            f"aqn.draws is '{noise.draws}' and {ranks} processes share the model: only exact draws are the same in all "
            "of them; write draws: exact"
        )
    if noise is not None and "rollout" not in noise.phases and zone is None:
        raise UsageError(
            f"aqn.phases are {', '.join(noise.phases)}: the engine's is 'rollout'; add it, or leave it out"
        )
