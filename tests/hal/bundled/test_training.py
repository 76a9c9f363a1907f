"""Training learns, reproducibly, at the rate it says, from a start in which every layer takes part."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from hal.bundled.architecture import LAYERS, build_model
from hal.bundled.training import Recipe, rate, train

SMALL = Recipe(steps=12, lesson_rows=2, text_length=64)


def test_the_losses_fall(untrained, tokenizer):
    reports = []
    train(untrained, tokenizer, Recipe(steps=2, lesson_rows=2, text_length=64), reports.append)
    start = reports[-1]
    last = train(untrained, tokenizer, SMALL, reports.append)
    assert last.lesson_loss < start.lesson_loss
    assert last.text_loss < start.text_loss
    assert last.step == 12
    assert not untrained.training


def test_the_same_seed_gives_the_same_weights(tokenizer):
    def trained(seed: int) -> torch.Tensor:
        model = build_model(tokenizer, seed)
        train(model, tokenizer, Recipe(steps=2, seed=seed, lesson_rows=1, text_length=32), lambda _: None)
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    first = trained(1)
    assert torch.equal(first, trained(1))
    assert not torch.equal(first, trained(2))


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [rate(step, 1000) for step in range(1000)]
    peak = rates.index(max(rates))
    assert 0 < rates[0] < 0.05
    assert max(rates) == pytest.approx(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_rate_is_sound_for_the_shortest_runs(steps):
    assert all(0 < rate(step, steps) <= 1 for step in range(steps))


def test_tokens_are_those_of_all_rows():
    assert Recipe(steps=10, lesson_rows=2, lesson_length=16, text_rows=1, text_length=8).tokens == 10 * (32 + 8)


def test_the_model_is_a_qwen2_that_vllm_can_run(untrained, tokenizer):
    config = untrained.config
    assert config.model_type == "qwen2"
    assert config.num_hidden_layers == LAYERS >= 12
    assert config.hidden_size // config.num_attention_heads == 32  # the smallest head vLLM's CPU attention takes
    assert config.max_position_embeddings >= 2048
    assert config.rms_norm_eps == 1e-6
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


@torch.no_grad()
def test_every_layer_takes_part_from_the_start(untrained):
    """What each layer adds is neither lost beside the residual stream nor drowns it."""
    states = untrained(input_ids=torch.arange(3, 103)[None], output_hidden_states=True).hidden_states[:-1]
    added = [(after - before).norm() / before.norm() for before, after in pairwise(states)]
    assert all(0.01 < float(share) < 2 for share in added), added
