"""Train a student by transformers' trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from distill.config import DistillConfig
from distill.measure import passes
from distill.objective import Objective
from distill.students import Models
from distill.training.data import Data, batches, padding_token
from hal.backend import TorchBackend
from hal.host import HostBackend
from hal.supervised import collate

Note = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: `steps` of `batch` examples at a constant `rate`."""

    steps: int = 200
    batch: int = 16
    rate: float = 5e-4


def train_student(
    models: Models, config: DistillConfig, data: Data, recipe: Recipe, backend: TorchBackend, seed: int, note: Note
) -> None:
    """Train the student in place, with the projections and the routing that `config` asks for beside it. `note` is told
    of each step and its losses.
    """
    from transformers import PrinterCallback, TrainingArguments

    padding = padding_token(models.tokenizer)
    torch.manual_seed(seed)  # of the projections
    objective = _objective(models, config, data, padding)
    parameters = [*models.student.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW([entry for entry in parameters if entry.requires_grad], lr=recipe.rate)
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            use_cpu=isinstance(backend, HostBackend),
            per_device_train_batch_size=recipe.batch,
            max_steps=recipe.steps,
            lr_scheduler_type="constant",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=seed,
        )
        trainer = _trainer_class()(
            model=models.student,
            args=settings,
            train_dataset=list(data.train),
            data_collator=lambda rows: collate(rows, padding),
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.distil(models, objective, note)
        trainer.train()


def save_student(models: Models, folder: Path) -> None:
    """Write the student and its tokenizer as a checkpoint that transformers loads."""
    student: Any = models.student
    student.save_pretrained(folder)
    models.tokenizer.save_pretrained(folder)


def _objective(models: Models, config: DistillConfig, data: Data, padding: int) -> Objective:
    """The objective with its widths read off one batch."""
    device = next(models.student.parameters()).device
    batch = next(batches(data.train[:2], 2, padding, device))
    with torch.no_grad():
        student, teachers = passes(models, config, batch)
    return Objective(config, student, teachers)


def _trainer_class() -> Any:
    """Made when it is used, because importing transformers' trainer takes seconds."""
    from transformers import Trainer

    class DistillTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
        """A trainer whose loss is an Objective's."""

        def distil(self, models: Models, objective: Objective, note: Note) -> None:
            """Set what the loss is made of, and who is told of it."""
            self._models, self._objective, self._note = models, objective, note

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            """The weighted sum of all losses of the batch."""
            step = self.state.global_step
            student, teachers = passes(self._models, self._objective.config, inputs)
            terms = self._objective(student, teachers, inputs["labels"], step)
            total = self._objective.total(terms)
            losses = {"total": total, **terms.named()}
            self._note(step, {name: float(value.detach()) for name, value in losses.items()})
            return (total, None) if return_outputs else total

    return DistillTrainer
