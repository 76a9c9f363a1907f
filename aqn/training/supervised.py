"""One run of supervised fine-tuning by transformers' trainer, with the fault and the noise of one arm."""

from __future__ import annotations

from aqn.training.run import TrainingRun
from hal.supervised import collate, example


def train_supervised(run: TrainingRun) -> None:
    """Train to predict the answers (not the questions); a checkpoint from an interrupted run is taken up."""
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(
        **run.common_settings(),
        per_device_train_batch_size=run.recipe.prompts,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=run.model,
        args=settings,
        train_dataset=[example(problem, run.tokenizer) for problem in run.problems],
        data_collator=lambda rows: collate(rows, run.tokenizer.pad_token_id),
        callbacks=run.callbacks(),
    )
    run.train_with(trainer)
