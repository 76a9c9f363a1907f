"""Noise and dead zone in verl's RL training, by verl's own extension points; verl itself is not changed.

    export VERL_USE_EXTERNAL_MODULES=aqn.integrations.verl
    python -m verl.trainer.main_ppo trainer.v1.trainer_mode=aqn_sync +aqn.sigma=0.05 +aqn.schedule=epoch_aware ...

verl imports this module in every process of a run, which registers the trainer, rollouts that take noise, and (where
VERL_PLATFORM=host) a platform for machines without accelerator. docs/verl.md has whole commands.
"""

from aqn.integrations.verl.versions import require_version

require_version()

from aqn.integrations.verl import host, rollout  # noqa: E402 -- a verl that lacks what these use was refused above

host.register()
rollout.register()

from aqn.integrations.verl import trainer  # noqa: E402, F401 -- registers itself; after the platform it runs on
