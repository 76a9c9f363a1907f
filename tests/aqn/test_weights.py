"""Noise in the norms' weights comes and goes without a trace."""

from __future__ import annotations

import pytest
import torch

import aqn
from hal import noise
from hal.errors import HookError
from hal.noise import stream_key
from tests.conftest import random_model


@pytest.fixture
def model():
    made = random_model("qwen2")
    for name, weight in made.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    return made


def norms(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if "norm" in name}


def test_the_draw_is_that_of_seed_step_and_name(model, configure):
    before = norms(model)
    with aqn.inject(model, configure(kind="weight", sigma=0.1, seed=5, target_layers=[2])) as injection:
        injection.step = 3
        with injection.during("rollout"):
            now = norms(model)
    changed = {name for name in now if not torch.equal(now[name], before[name])}
    assert changed == {f"model.layers.2.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")}
    name = "model.layers.2.input_layernorm.weight"
    draw = noise.normal((64,), seed=5, stream=stream_key("aqn.weight", 3, "2.input_layernorm"))
    assert torch.equal(now[name], draw.mul(0.1) + before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_hundred_draws_leave_every_bit_as_it_was(model, configure, dtype):
    model.to(dtype)
    before = norms(model)
    with aqn.inject(model, configure(kind="weight", sigma=0.1)) as injection:
        for step in range(100):
            injection.step = step
            with injection.during("rollout"):
                assert not torch.equal(
                    norms(model)["model.layers.0.input_layernorm.weight"],
                    before["model.layers.0.input_layernorm.weight"],
                )
            assert all(torch.equal(now, before[name]) for name, now in norms(model).items())


def test_a_new_step_inside_a_phase_draws_from_the_clean_weights(model, configure):
    config = configure(kind="weight", sigma=0.1)
    with aqn.inject(model, config) as injection:
        injection.phase = "rollout"
        injection.step = 1
        second = norms(model)
        injection.step = 2
        injection.step = 1
        assert all(torch.equal(now, second[name]) for name, now in norms(model).items())


def test_weights_are_restored_after_an_exception(model, configure):
    before = norms(model)
    with (
        pytest.raises(RuntimeError, match="as asked"),
        aqn.inject(model, configure(kind="weight", sigma=0.1)) as injection,
        injection.during("rollout"),
    ):
        raise RuntimeError("as asked")
    assert all(torch.equal(now, before[name]) for name, now in norms(model).items())


def test_a_weight_changed_while_noise_is_in_it_is_an_error_and_the_others_are_clean(model, configure):
    before = norms(model)
    weight = model.model.layers[1].input_layernorm.weight
    with (
        pytest.raises(HookError, match=r"1\.input_layernorm' was changed"),
        aqn.inject(model, configure(kind="weight", sigma=0.1)) as injection,
        injection.during("rollout"),
    ):
        weight.data.add_(1.0)
    others = {name: now for name, now in norms(model).items() if name != "model.layers.1.input_layernorm.weight"}
    assert all(torch.equal(now, before[name]) for name, now in others.items())


def test_without_a_phase_nothing_happens_and_that_is_an_error(model, configure, ids):
    with pytest.raises(HookError, match=r"during\(\)"), aqn.inject(model, configure(kind="weight", sigma=0.1)):
        model(ids)


def test_a_silent_stage_is_no_error(model, configure):
    config = configure(kind="weight", sigma=0.01, schedule={"name": "global_decay", "shape": "exponential"})
    before = norms(model)
    with aqn.inject(model, config, steps=10) as injection, injection.during("rollout"):
        assert all(torch.equal(now, before[name]) for name, now in norms(model).items())
    assert not injection.counts


def test_a_model_without_such_norms_is_refused(configure):
    with (
        pytest.raises(HookError, match="no RMSNorm"),
        aqn.inject(random_model("gpt2"), configure(kind="weight", sigma=0.1)),
    ):
        pass
