"""How good a model is at the arithmetic task and at plain text, on whatever device it is on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.stats import binomtest

from hal.bundled.arithmetic import Problem
from hal.errors import UsageError
from hal.evaluation import completions, text_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Accuracy:
    """How many of `total` replies were right, with the Wilson 95 % interval of the rate."""

    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total == 0:
            raise UsageError(
                f"{self.correct} of {self.total} is no count of successes: give 0 <= correct <= total, total > 0"
            )

    @property
    def rate(self) -> float:
        """The share of right replies."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the Wilson 95 % interval."""
        bounds = binomtest(self.correct, self.total).proportion_ci(0.95, method="wilson")
        return float(bounds.low), float(bounds.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.1%} ({self.correct}/{self.total}, 95 % interval {low:.1%} to {high:.1%})"


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 5,
) -> Accuracy:
    """The share of problems whose greedy reply is exactly the answer."""
    given = replies(model, tokenizer, problems, batch_size=batch_size, max_new_tokens=max_new_tokens)
    return score(problems, given)


def score(problems: Sequence[Problem], given: Sequence[str]) -> Accuracy:
    """Count the replies that are exactly the answer."""
    right = sum(problem.answer == reply for problem, reply in zip(problems, given, strict=True))
    return Accuracy(right, len(problems))


def replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 5,
) -> list[str]:
    """The greedy reply to each problem, stripped of surrounding space; shorter prompts are padded on the left."""
    prompts = [
        tokenizer.apply_chat_template(problem.messages, tokenize=False, add_generation_prompt=True)
        for problem in problems
    ]
    return completions(model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens)


def text_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_tokens: int = 256,
    batch_size: int = 16,
) -> float:
    """Mean cross entropy in nats per predicted token over the texts, each cut to `max_tokens`; computed in float32."""
    losses = text_losses(model, tokenizer, texts, max_tokens=max_tokens, batch_size=batch_size)
    count = sum(loss.tokens for loss in losses)
    if count == 0:
        raise UsageError("the texts hold no token to predict: give at least one text of two tokens or more")
    return sum(loss.nats for loss in losses) / count
