"""How good a model is at the arithmetic task and at plain text, on whatever device it is on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from scipy.stats import binomtest
from torch.nn import functional

from hal.bundled.arithmetic import Problem
from hal.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_IGNORED: Final = -100  # a target that is padding


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
    if batch_size < 1 or max_new_tokens < 1:
        raise UsageError(f"batch_size {batch_size} and max_new_tokens {max_new_tokens} must both be 1 or more")
    prompts = [
        tokenizer.apply_chat_template(problem.messages, tokenize=False, add_generation_prompt=True)
        for problem in problems
    ]
    given: list[str] = []
    for batch in _chunks(prompts, batch_size):
        inputs = _padded(tokenizer, batch, "left", model)
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        given.extend(reply.strip() for reply in tokenizer.batch_decode(new, skip_special_tokens=True))
    return given


@torch.no_grad()
def text_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_tokens: int = 256,
    batch_size: int = 16,
) -> float:
    """Mean cross entropy in nats per predicted token over the texts, each cut to `max_tokens`; computed in float32."""
    total, count = 0.0, 0
    for batch in _chunks(texts, batch_size):
        inputs = _padded(tokenizer, batch, "right", model, max_tokens)
        logits = model(**inputs).logits[:, :-1].float()
        targets = inputs["input_ids"][:, 1:].masked_fill(inputs["attention_mask"][:, 1:] == 0, _IGNORED)
        each = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="none"
        )
        total += float(each.sum())
        count += int((targets != _IGNORED).sum())
    if count == 0:
        raise UsageError("the texts hold no token to predict: give at least one text of two tokens or more")
    return total / count


def _chunks(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield list(texts[start : start + size])


def _padded(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    side: str,
    model: PreTrainedModel,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """Token ids and attention mask on the model's device; chat texts carry their special tokens already."""
    inputs: dict[str, Any] = tokenizer(
        texts,
        add_special_tokens=False,
        padding=True,
        padding_side=side,
        truncation=max_tokens is not None,
        max_length=max_tokens,
        return_token_type_ids=False,
        return_tensors="pt",
    ).to(model.device)
    return inputs
