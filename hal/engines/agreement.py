"""Does the engine that writes give its tokens the probabilities that the trainer gives them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hal.engines.vllm import VllmEngine
from hal.errors import UsageError


@dataclass(frozen=True)
class Agreement:
    """Differences between two models' views of the same `tokens` tokens: of their probabilities, largest and mean (what
    verl calls rollout_probs_diff), and the largest of their log-probabilities.
    """

    tokens: int
    probability_max: float
    probability_mean: float
    log_probability_max: float

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens: probabilities differ by {self.probability_max:.2e} at most and by "
            f"{self.probability_mean:.2e} on average, log-probabilities by {self.log_probability_max:.2e} at most"
        )


def rollout_probs_diff(llm: Any, model: nn.Module, sequences: Sequence[Sequence[int]]) -> Agreement:
    """Compare what `llm`, a `vllm.LLM` with our worker extension (or a `VllmEngine`), and `model`, a transformers
    causal model, say of every token but the first of each of `sequences` of token ids; each with whatever faults and
    noise are in it. UsageError for sequences that hold nothing to compare.
    """
    engine = llm if isinstance(llm, VllmEngine) else VllmEngine(llm)
    usable = [list(sequence) for sequence in sequences if len(sequence) > 1]
    if not usable:
        raise UsageError("no sequence has two tokens: give longer ones, of which all but the first are compared")
    return compare(_engine_log_probs(engine, usable), _trainer_log_probs(model, usable))


def compare(rollout: torch.Tensor, trainer: torch.Tensor) -> Agreement:
    """Compare two views of the same tokens, log-probabilities [tokens]."""
    difference = (rollout.double().exp() - trainer.double().exp()).abs()
    return Agreement(
        tokens=rollout.numel(),
        probability_max=float(difference.max()),
        probability_mean=float(difference.mean()),
        log_probability_max=float((rollout.double() - trainer.double()).abs().max()),
    )


def _engine_log_probs(engine: VllmEngine, sequences: Sequence[list[int]]) -> torch.Tensor:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    outputs = engine.llm.generate([{"prompt_token_ids": ids} for ids in sequences], sampling, use_tqdm=False)
    values = [
        row[token].logprob
        for ids, output in zip(sequences, outputs, strict=True)
        for token, row in zip(ids[1:], output.prompt_logprobs[1:], strict=True)
    ]
    return torch.tensor(values)


@torch.no_grad()
def _trainer_log_probs(model: nn.Module, sequences: Sequence[list[int]]) -> torch.Tensor:
    device = next(model.parameters()).device
    found = []
    for ids in sequences:
        tokens = torch.tensor([ids], device=device)
        logits = model(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
        found.append(logits.gather(-1, tokens[0, 1:, None])[:, 0].cpu())
    return torch.cat(found)
