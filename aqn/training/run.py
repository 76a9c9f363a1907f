"""What both trainers are told and how both are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqn.injection import Injection
from aqn.training.callback import StepCallback
from aqn.training.recipe import Recipe
from hal.bundled.arithmetic import Problem


@dataclass(frozen=True)
class TrainingRun:
    """One run of a trainer: `model` learns the `problems` in place by `recipe`, under the fault and noise of
    `injection` (None: neither), its checkpoints in `folder`. `note` is told of each step and what was logged there;
    `on_host` keeps it off any accelerator.
    """

    model: Any
    tokenizer: Any
    problems: Sequence[Problem]
    recipe: Recipe
    seed: int
    folder: Path
    injection: Injection | None
    note: Callable[[int, dict[str, float]], None]
    on_host: bool

    def common_settings(self) -> dict[str, Any]:
        """The arguments that transformers' trainer and TRL's share: a constant rate, a checkpoint each quarter of the
        run and the last of them kept, a log of each step, nothing reported elsewhere.
        """
        return {
            "output_dir": str(self.folder),
            "use_cpu": self.on_host,
            "learning_rate": self.recipe.rate,
            "lr_scheduler_type": "constant",
            "num_train_epochs": self.recipe.epochs,
            "max_steps": self.recipe.steps,
            "logging_steps": 1,
            "save_steps": max(10, self.recipe.steps // 4),
            "save_total_limit": 1,
            "report_to": [],
            "disable_tqdm": True,
            "seed": self.seed,
        }

    def callbacks(self) -> list[Any]:
        """What either trainer calls at each step."""
        return [StepCallback(self.injection, self.note)]

    def train_with(self, trainer: Any) -> None:
        """Train, from the last checkpoint in the folder where there is one; the noise is the actor's."""
        from transformers import PrinterCallback
        from transformers.trainer_utils import get_last_checkpoint

        trainer.remove_callback(PrinterCallback)
        if self.injection is not None:
            self.injection.phase = "actor_forward"
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(self.folder)) if self.folder.is_dir() else None)
