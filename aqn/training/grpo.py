"""One run of GRPO by TRL's trainer, with the fault and the noise of one arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aqn.injection import Injection
from aqn.integrations.transformers import count_from_the_first_token
from aqn.training.callback import StepCallback
from aqn.training.recipe import Recipe
from aqn.training.run import common_settings, run
from hal.bundled.arithmetic import Problem
from hal.errors import UsageError


def train_grpo(
    model: Any,
    tokenizer: Any,
    train: Sequence[Problem],
    recipe: Recipe,
    seed: int,
    folder: Path,
    injection: Injection | None,
    note: Callable[[int, dict[str, float]], None],
    on_host: bool,
) -> None:
    """Train `model` in place; a checkpoint in `folder` from an interrupted run is taken up. The reward of a reply is 1
    when it is the answer. A token has one position, and so one noise, when it is written and when it is learnt from.
    Without TRL a UsageError that says how to get it.
    """
    require_trl()
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    datasets.disable_progress_bars()

    class Trainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped here
        """Tells rollout from training; both carry noise, and both know it."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            if injection is None:
                return super()._generate_and_score_completions(inputs)
            with injection.during("rollout"):
                return super()._generate_and_score_completions(inputs)

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [entry[0]["content"] if isinstance(entry, list) else entry for entry in completions]
        return [float(text.strip() == right) for text, right in zip(texts, answer, strict=True)]

    data = datasets.Dataset.from_dict(
        {"prompt": [problem.messages for problem in train], "answer": [problem.answer for problem in train]}
    )
    settings = GRPOConfig(
        **common_settings(recipe, seed, folder, on_host),
        bf16=False,
        per_device_train_batch_size=recipe.prompts * recipe.completions,
        num_generations=recipe.completions,
        max_completion_length=recipe.new_tokens,
        gradient_checkpointing=False,
    )
    trainer = Trainer(
        model=model,
        reward_funcs=reward,
        args=settings,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[StepCallback(injection, note)],
    )
    counting = model.register_forward_pre_hook(count_from_the_first_token, with_kwargs=True)
    try:
        run(trainer, injection, folder)
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
