"""verl's trainer with noise whose strength follows its steps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray
from omegaconf import open_dict
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from aqn.hits import Hit
from aqn.integrations import worker as beside_the_model
from aqn.integrations.counting import agreed, merge_counts, survival
from aqn.integrations.verl import host
from aqn.integrations.verl.rollout import SUPPORTED
from aqn.integrations.verl.settings import configuration, document
from hal.engines.worker import name_of
from hal.errors import EngineError

_POLL_S = 0.1  # a small model's step takes less than the 2 s that verl waits between two looks


@register_trainer("aqn_sync")
class AqnSyncTrainer(PPOTrainerSync):  # type: ignore[misc]  # as above
    """verl's synchronous trainer: `trainer.v1.trainer_mode=aqn_sync`. Each step's strength is the schedule's at
    `global_steps - 1`, so a resumed run goes on where it stopped. Rollout and actor carry the same noise; validation
    and the reference policy none, which is measured: `aqn/hits/...` in verl's metrics says how often each was hit.
    """

    def __init__(self, config: Any) -> None:
        with open_dict(config):
            # verl chooses by this name between synchronous parts and others.
            config.trainer.v1.trainer_mode = "sync"
        self._aqn = configuration(config)
        self._rollout_phases = self._wants_rollout(config)
        self._sigma = 0.0
        self._last: dict[str, Counter[Hit]] = {}
        self._reference_hits = 0
        super().__init__(config)
        if host.chosen():
            self.replay_buffer.poll_interval = _POLL_S

    # -- verl's hooks -------------------------------------------------------------------------------

    def _init_resource_pool_mgr(self) -> None:
        from aqn.integrations.verl.worker import AqnActorWorker

        super()._init_resource_pool_mgr()
        for role in list(self.role_worker_mapping):
            if str(role).startswith("actor"):
                self.role_worker_mapping[role] = ray.remote(AqnActorWorker)

    def on_init_end(self) -> None:
        """Install noise and dead zone where they act; until the first step nothing carries noise."""
        super().on_init_end()
        run = {
            "document": document(self._aqn),
            "steps": int(self.total_training_steps),
            "epochs": int(self.config.trainer.total_epochs),
        }
        self.actor_rollout_wg.aqn_install(**run)
        if self._rollout_phases:
            self._rollout(beside_the_model.install, change=True, **run)
            self._set_rollout("validation")
        self._last = self._counts()

    def on_step_begin(self) -> None:
        """Begin the step's noise."""
        super().on_step_begin()
        self._reference_hits = 0
        states = self.actor_rollout_wg.aqn_set(self.global_steps - 1, "actor_forward")
        states = [*states, *self._set_rollout("rollout")]
        self._sigma = agreed(states, "sigma")

    def on_step_end(self) -> None:
        """End the step's noise before weights travel and validation runs, and report it."""
        report = self._report()
        self.actor_rollout_wg.aqn_set(self.global_steps - 1, "validation")
        self._set_rollout("validation")
        super().on_step_end()
        self._pending_sync_metrics = {**(getattr(self, "_pending_sync_metrics", None) or {}), **report}

    def _compute_ref_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        before = self._total()
        batch = super()._compute_ref_log_prob(batch, metrics)
        self._reference_hits += self._total() - before
        return batch

    def _validate(self) -> dict[str, Any]:
        before = self._total()
        metrics: dict[str, Any] = super()._validate()
        metrics["aqn/hits/validation"] = self._total() - before
        return metrics

    # -- ours ---------------------------------------------------------------------------------------

    def _wants_rollout(self, config: Any) -> bool:
        """Whether the rollout takes part; EngineError when it cannot."""
        rollout = config.actor_rollout_ref.rollout
        noise = self._aqn.noise
        wanted = self._aqn.dead_zone is not None or (noise is not None and "rollout" in noise.phases)
        if not wanted:
            return False
        if rollout.name not in SUPPORTED:
            raise EngineError(
                f"rollout.name is {rollout.name}, which takes no noise: choose one of {', '.join(SUPPORTED)}, or leave "
                "'rollout' out of aqn.phases"
            )
        if rollout.name == "vllm" and not rollout.enforce_eager:
            raise EngineError(
                "rollout.enforce_eager is False: vLLM would run compiled graphs, which skip hooks without a word; set "
                "actor_rollout_ref.rollout.enforce_eager=True"
            )
        return True

    def _set_rollout(self, phase: str) -> list[dict[str, Any]]:
        step = max(self.global_steps - 1, 0)
        return self._rollout(beside_the_model.set_step, change=True, step=step, phase=phase)

    def _rollout(self, function: Any, change: bool = False, **arguments: Any) -> list[dict[str, Any]]:
        """Run a function in every process of every rollout replica."""
        if not self._rollout_phases:
            return []
        replicas = self.llm_server_manager.get_replicas()
        calls = [replica.servers[0].aqn_call.remote(name_of(function), arguments, change) for replica in replicas]
        return [state for states in ray.get(calls) for state in states]

    def _states(self) -> dict[str, list[dict[str, Any]]]:
        return {"actor": self.actor_rollout_wg.aqn_state(), "rollout": self._rollout(beside_the_model.state)}

    def _counts(self) -> dict[str, Counter[Hit]]:
        return {part: _sum(states) for part, states in self._states().items()}

    def _total(self) -> int:
        return sum(sum(counts.values()) for counts in self._counts().values())

    def _report(self) -> dict[str, float]:
        """The step's metrics. EngineError when a part that should carry noise carried none."""
        states = self._states()
        now = {part: _sum(entries) for part, entries in states.items()}
        phases: Counter[str] = Counter()
        for part, counts in now.items():
            for hit, count in counts.items():
                phases[hit.phase] += count - self._last.get(part, Counter())[hit]
        self._last = now
        noise = self._aqn.noise
        for phase in noise.phases if noise else ():
            # The backward pass of a critic's warm-up never comes, and validation is asked for elsewhere.
            if self._sigma > 0 and phase in ("rollout", "actor_forward") and not phases[phase]:
                raise EngineError(f"noise of strength {self._sigma} was asked for in {phase} and hit nothing there")
        report = {"aqn/sigma": self._sigma, "aqn/hits/reference": float(self._reference_hits)}
        report |= {f"aqn/hits/{phase}": float(phases[phase]) for phase in _REPORTED}
        if self._aqn.dead_zone is not None:
            for part, entries in states.items():
                report[f"aqn/deadzone/calls_{part}"] = float(sum(entry["deadzone"]["calls"] for entry in entries))
                report[f"aqn/deadzone/survival_rate_{part}"] = survival(entries)
        return report


_REPORTED = ("rollout", "actor_forward", "actor_backward")


def _sum(states: list[dict[str, Any]]) -> Counter[Hit]:
    """All hits of all processes; data-parallel ones work on different data and are added."""
    total: Counter[Hit] = Counter()
    for state in states:
        total.update(merge_counts([state]))
    return total
