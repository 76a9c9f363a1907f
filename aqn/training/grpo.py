"""One run of GRPO by TRL's trainer, with the fault and the noise of one arm."""

from __future__ import annotations

from typing import Any

from aqn.integrations.transformers import count_from_the_first_token
from aqn.training.run import TrainingRun
from hal.errors import UsageError


def train_grpo(run: TrainingRun) -> None:
    """Train by GRPO; a checkpoint from an interrupted run is taken up. The reward of a reply is 1 when it is the
    answer. A token has one position, and so one noise, when it is written and when it is learnt from. Without TRL a
    UsageError that says how to get it.
    """
    require_trl()
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    datasets.disable_progress_bars()

    class Trainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped here
        """Tells rollout from training; both carry noise, and both know it."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            if run.injection is None:
                return super()._generate_and_score_completions(inputs)
            with run.injection.during("rollout"):
                return super()._generate_and_score_completions(inputs)

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [entry[0]["content"] if isinstance(entry, list) else entry for entry in completions]
        return [float(text.strip() == right) for text, right in zip(texts, answer, strict=True)]

    data = datasets.Dataset.from_dict(
        {
            "prompt": [problem.messages for problem in run.problems],
            "answer": [problem.answer for problem in run.problems],
        }
    )
    settings = GRPOConfig(
        **run.common_settings(),
        bf16=False,
        per_device_train_batch_size=run.recipe.prompts * run.recipe.completions,
        num_generations=run.recipe.completions,
        max_completion_length=run.recipe.new_tokens,
        gradient_checkpointing=False,
    )
    trainer = Trainer(
        model=run.model,
        reward_funcs=reward,
        args=settings,
        train_dataset=data,
        processing_class=run.tokenizer,
        callbacks=run.callbacks(),
    )
    counting = run.model.register_forward_pre_hook(count_from_the_first_token, with_kwargs=True)
    try:
        run.train_with(trainer)
    finally:
        counting.remove()


def require_trl() -> None:
    """Raise UsageError now, before anything is trained, when TRL is not installed."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"GRPO needs TRL ({error}): pip install 'srdd-hal[trl]', or train with --method supervised"
        ) from error
