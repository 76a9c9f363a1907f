"""What a causal language model answers and how well it predicts text, on whatever device it is on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from hal.errors import UsageError
from hal.ops.loss import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NUMBER: Final = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class TextLoss:
    """Cross entropy of one text, in `nats` over its `tokens` predicted ones."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per predicted token; 0 for a text that predicts none."""
        return self.nats / self.tokens if self.tokens else 0.0


def as_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """`question` as the model expects it: in its chat template where it has one, else as it is."""
    if not getattr(tokenizer, "chat_template", None):
        return question
    messages = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 5,
    add_special_tokens: bool = False,
) -> list[str]:
    """The greedy continuation of each prompt, stripped of surrounding space. Shorter prompts are padded on the left;
    with a tokenizer that cannot pad they are run one by one.
    """
    if batch_size < 1 or max_new_tokens < 1:
        raise UsageError(f"batch_size {batch_size} and max_new_tokens {max_new_tokens} must both be 1 or more")
    given: list[str] = []
    for batch in _batches(tokenizer, prompts, batch_size):
        inputs = _tokens(tokenizer, batch, model, "left", None, add_special_tokens)
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=_pad_token(tokenizer)
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        given.extend(reply.strip() for reply in tokenizer.batch_decode(new, skip_special_tokens=True))
    return given


def is_right(answer: str, reply: str) -> bool:
    """Whether a reply is the answer word for word, or both end in the same number (GSM8K's "#### 42")."""
    if reply.strip() == answer.strip():
        return True
    expected, given = _NUMBER.findall(answer), _NUMBER.findall(reply)
    return bool(expected and given) and _value(expected[-1]) == _value(given[-1])


@torch.no_grad()
def text_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_tokens: int = 256,
    batch_size: int = 16,
    add_special_tokens: bool = False,
) -> list[TextLoss]:
    """The cross entropy of each text, cut to `max_tokens`; computed in float32 from the model's logits."""
    losses: list[TextLoss] = []
    for batch in _batches(tokenizer, texts, batch_size):
        inputs = _tokens(tokenizer, batch, model, "right", max_tokens, add_special_tokens)
        logits = model(**inputs).logits[:, :-1].float()
        targets = inputs["input_ids"][:, 1:].masked_fill(inputs["attention_mask"][:, 1:] == 0, IGNORED)
        each = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        sums, counts = each.sum(1).tolist(), (targets != IGNORED).sum(1).tolist()
        losses.extend(TextLoss(nats, tokens) for nats, tokens in zip(sums, counts, strict=True))
    return losses


def _batches(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int) -> Iterator[list[str]]:
    size = 1 if _pad_token(tokenizer) is None else size
    for start in range(0, len(texts), size):
        yield list(texts[start : start + size])


def _pad_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # as is usual; the padding is masked
    token: int | None = tokenizer.pad_token_id
    return token


def _tokens(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    model: PreTrainedModel,
    side: str,
    max_tokens: int | None,
    add_special_tokens: bool,
) -> dict[str, Any]:
    """Token ids and attention mask on the model's device."""
    inputs: dict[str, Any] = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        padding=len(texts) > 1,
        padding_side=side,
        truncation=max_tokens is not None,
        max_length=max_tokens,
        return_token_type_ids=False,
        return_tensors="pt",
    ).to(model.device)
    return inputs


def _value(number: str) -> float:
    return float(number.replace(",", ""))
