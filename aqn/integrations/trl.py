"""Noise and dead zone in TRL's training by reinforcement, on one machine.

    trainer = GRPOTrainer(..., callbacks=[AqnCallback(config)])
    watch_rollouts(trainer)
    trainer.train()

One model writes the completions and learns from them, so rollout and training carry the same noise by themselves;
`watch_rollouts` tells the two apart, so that each has its phase, and refuses runs in which one of them would be clean.
"""

from __future__ import annotations

import functools
from typing import Any

from aqn.integrations.transformers import AqnCallback
from hal.errors import EngineError

_WRITES = "_generate_single_turn"  # all of TRL's ways to write completions, and nothing else, pass through it


def watch_rollouts(trainer: Any) -> None:
    """Give completions that `trainer` writes for training the phase "rollout". Raises EngineError for a trainer without
    an `AqnCallback`, for one whose completions another process writes, and for one whose reference policy is the noisy
    model without its adapter.
    """
    callback = next((entry for entry in trainer.callback_handler.callbacks if isinstance(entry, AqnCallback)), None)
    if callback is None:
        raise EngineError("the trainer has no AqnCallback: pass callbacks=[AqnCallback(config)] when you make it")
    if getattr(trainer, "use_vllm", False):
        raise EngineError(
            "use_vllm is True, and TRL starts vLLM without our worker extension, so rollouts would be clean: set "
            "use_vllm=False, or train with verl (docs/verl.md)"
        )
    if getattr(trainer, "beta", 0) and getattr(trainer, "ref_model", None) is None:
        raise EngineError(
            "beta is not 0 and the reference policy is the model without its adapter, which carries the noise: set "
            "beta=0, or train without an adapter"
        )
    write = getattr(trainer, _WRITES, None)
    if write is None:
        raise EngineError(
            f"this TRL's {type(trainer).__name__} has no {_WRITES}, which tells rollout from training: install "
            "'trl>=1.16,<2'"
        )

    @functools.wraps(write)
    def write_in_phase(*args: Any, **options: Any) -> Any:
        if not trainer.model.training:  # an evaluation's completions
            return write(*args, **options)
        with callback.injection.during("rollout"):
            return write(*args, **options)

    setattr(trainer, _WRITES, write_in_phase)
