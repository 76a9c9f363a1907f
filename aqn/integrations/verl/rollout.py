"""Rollouts that take noise: verl's vLLM with two methods more, and transformers on the host."""

from __future__ import annotations

from typing import Any, Final

SUPPORTED: Final = ("vllm", "transformers")


def register() -> None:
    """Register both under their names. Loading waits until one is used: a vLLM is imported where it runs."""
    from verl.workers.rollout import base
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    RolloutReplicaRegistry.register("vllm", _load_vllm)
    RolloutReplicaRegistry.register("transformers", _load_transformers)
    adapter = "aqn.integrations.verl.transformers_rollout.TransformersAdapter"
    base._ROLLOUT_REGISTRY["transformers", "async"] = adapter


def _load_vllm() -> Any:
    from aqn.integrations.verl.vllm_rollout import AqnReplica

    return AqnReplica


def _load_transformers() -> Any:
    from aqn.integrations.verl.transformers_rollout import TransformersReplica

    return TransformersReplica
