"""Training of the bundled model: what one step computes, how long and on how much, how the learning rate goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from hal.bundled.batches import Batch, packed_lessons, running_text
from hal.bundled.lessons import lessons
from hal.bundled.text import passages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

PEAK_RATE: Final = 2e-3
WARM_UP: Final = 0.03  # of the steps
TEXT_SHARE: Final = 0.2  # of the loss
WEIGHT_DECAY: Final = 0.1
_CLIP: Final = 1.0
_REPORT_EVERY: Final = 50


@dataclass(frozen=True)
class Recipe:
    """How long training takes and how much it reads at a time; the defaults made the shipped checkpoint."""

    steps: int = 6000
    seed: int = 0
    lesson_rows: int = 8
    lesson_length: int = 128
    text_rows: int = 1
    text_length: int = 256

    @property
    def lesson_tokens(self) -> int:
        """Tokens of arithmetic read in all, padding included."""
        return self.steps * self.lesson_rows * self.lesson_length

    @property
    def tokens(self) -> int:
        """Tokens read in all, padding included."""
        return self.lesson_tokens + self.steps * self.text_rows * self.text_length


@dataclass(frozen=True)
class Progress:
    """Where training stands: mean losses since the report before, and seconds from the start. The loss of lessons
    includes a little for their questions, whose numbers nobody can predict, so it never comes near nothing.
    """

    step: int
    lesson_loss: float
    text_loss: float
    seconds: float


def train(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    report: Callable[[Progress], None],
) -> Progress:
    """Train in place, reporting every 50 steps, and return the last report."""
    optimizer = torch.optim.AdamW(_groups(model), lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, recipe.steps))
    arithmetic, text = _sources(tokenizer, recipe)
    started, losses = time.monotonic(), []
    latest = Progress(0, math.nan, math.nan, 0.0)
    model.train()
    for step in range(1, recipe.steps + 1):
        losses.append(_accumulate(model, next(arithmetic), next(text)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % _REPORT_EVERY == 0 or step == recipe.steps:
            reply, words = torch.stack(losses).mean(0).tolist()
            latest = Progress(step, reply, words, time.monotonic() - started)
            report(latest)
            losses.clear()
    model.eval()
    return latest


def rate(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step: a straight warm-up, then half a cosine down to nothing."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _sources(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> tuple[Iterator[Batch], Iterator[Batch]]:
    arithmetic = packed_lessons(
        lessons(tokenizer, recipe.seed, recipe.lesson_tokens),
        recipe.lesson_rows,
        recipe.lesson_length,
        tokenizer.pad_token_id,
    )
    text = running_text(passages("train"), tokenizer, recipe.text_rows, recipe.text_length, recipe.seed)
    return arithmetic, text


def _groups(model: torch.nn.Module) -> list[dict[str, object]]:
    """Matrices decay; norm scales and biases do not."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]


def _accumulate(model: Qwen2ForCausalLM, arithmetic: Batch, text: Batch) -> torch.Tensor:
    """Add the gradients of both batches and return both losses."""
    losses = []
    for batch, share in ((arithmetic, 1 - TEXT_SHARE), (text, TEXT_SHARE)):
        loss = _loss(model, batch)
        torch.autograd.backward(share * loss)
        losses.append(loss.detach())
    return torch.stack(losses)


def _loss(model: Qwen2ForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean cross entropy, each token by its weight."""
    output = model(
        input_ids=batch.ids, attention_mask=batch.attention_mask, position_ids=batch.positions, use_cache=False
    )
    each = functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    return (each * weights).sum() / weights.sum()
