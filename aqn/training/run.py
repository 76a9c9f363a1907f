"""What both trainers are told and how both are run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aqn.injection import Injection
from aqn.training.recipe import Recipe


def common_settings(recipe: Recipe, seed: int, folder: Path, on_host: bool) -> dict[str, Any]:
    """The arguments that transformers' trainer and TRL's share: a constant rate, a checkpoint each quarter of the run
    and the last of them kept, a log of each step, nothing reported elsewhere.
    """
    return {
        "output_dir": str(folder),
        "use_cpu": on_host,
        "learning_rate": recipe.rate,
        "lr_scheduler_type": "constant",
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.steps,
        "logging_steps": 1,
        "save_steps": max(10, recipe.steps // 4),
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "seed": seed,
    }


def run(trainer: Any, injection: Injection | None, folder: Path) -> None:
    """Train, from the last checkpoint in `folder` where there is one; the noise is the actor's."""
    from transformers import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    trainer.remove_callback(PrinterCallback)
    if injection is not None:
        injection.phase = "actor_forward"
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
