"""verl's own actor engine, in this process: it carries the noise that a rollout of the same step carries."""

from __future__ import annotations

import pytest
import torch

import aqn
from tests.engines.verl.actor import (
    MODEL,
    PROMPT,
    join_group,
    log_probs,
    make_batch,
    make_engine,
    train,
)

ZONE = {"layer": 7, "threshold": 0.05, "scope": "token"}
NOISE = {"sigma": 0.05, "phases": ["rollout", "actor_forward", "actor_backward"]}
CONFIGS = {
    "matmul": {"aqn": NOISE},
    "all_ops": {"aqn": {**NOISE, "mode": "all_ops"}},
    "layer": {"aqn": {"kind": "layer", "sigma": 0.05}},
    "deadzone": {"deadzone": ZONE},
    "both": {"aqn": NOISE, "deadzone": ZONE},
}


@pytest.fixture(scope="module")
def engine():
    join_group()
    return make_engine()


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def rollout():
    """The model as a rollout by transformers holds it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="sdpa").eval()


def rollout_log_probs(model, batch):
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits[:, PROMPT - 1 : -1].log_softmax(-1)
    return logits.gather(-1, batch["responses"][..., None])[..., 0]


def test_the_engine_is_verls_own_for_this_platform(engine):
    from verl.utils.device import get_device_name
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    assert isinstance(engine, FSDPEngineWithLMHead)
    assert get_device_name() == "cpu"
    assert type(engine.module).__name__.startswith("FSDP")


@pytest.mark.parametrize("name", CONFIGS)
def test_actor_and_rollout_of_one_step_carry_the_same_noise(engine, rollout, batch, name):
    config = aqn.AqnConfig.parse(CONFIGS[name])
    clean = log_probs(engine, batch)
    assert torch.allclose(clean, rollout_log_probs(rollout, batch), atol=1e-4)
    with aqn.inject(engine.module, config) as actor, aqn.inject(rollout, config) as served:
        for step in (0, 3):
            actor.step = served.step = step
            with actor.during("actor_forward"), served.during("rollout"):
                noisy = log_probs(engine, batch)
                assert torch.allclose(noisy, rollout_log_probs(rollout, batch), atol=1e-4)
        assert (noisy - clean).abs().mean() > 1e-3
    assert torch.equal(log_probs(engine, batch), clean)


def test_another_step_draws_other_noise(engine, batch):
    config = aqn.AqnConfig.parse({"aqn": NOISE})
    with aqn.inject(engine.module, config) as actor, actor.during("actor_forward"):
        first = log_probs(engine, batch)
        actor.step = 1
        assert not torch.allclose(log_probs(engine, batch), first, atol=1e-3)
        actor.step = 0
        assert torch.equal(log_probs(engine, batch), first)


def test_an_update_is_hit_forward_and_backward(batch):
    join_group()
    engine = make_engine()
    config = aqn.AqnConfig.parse({"aqn": NOISE})
    with aqn.inject(engine.module, config) as actor:
        actor.phase = "actor_forward"
        old = log_probs(engine, batch)
        before = actor.counts.total()
        metrics = train(engine, batch, old)
        hits = {
            phase: sum(n for hit, n in actor.counts.items() if hit.phase == phase) for phase in actor.config.aqn.phases
        }
    assert metrics["grad_norm"] > 0
    assert before == 12 * 7
    # q, k, v, o, gate, up, down forward; their inputs' and weights' gradients backward.
    assert hits == {"rollout": 0, "actor_forward": 2 * 12 * 7, "actor_backward": 2 * 12 * 7}


def test_gradient_checkpointing_draws_the_same_noise_again(batch):
    """Recomputed activations must be those of the first pass, or the gradient is of another function."""
    join_group()
    config = aqn.AqnConfig.parse({"aqn": NOISE})
    norms = []
    for checkpointing in (False, True):
        engine = make_engine(checkpointing)
        with aqn.inject(engine.module, config) as actor:
            actor.phase = "actor_forward"
            norms.append(train(engine, batch, log_probs(engine, batch))["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_reference_pass_through_the_actor_carries_nothing(engine, batch):
    """With an adapter, verl's reference policy is the actor without it: the worker then asks for a clean phase."""
    config = aqn.AqnConfig.parse({"aqn": NOISE})
    clean = log_probs(engine, batch)
    with aqn.inject(engine.module, config) as actor:
        actor.phase = "actor_forward"
        log_probs(engine, batch)
        before = actor.counts.total()
        with actor.during("validation"):
            assert torch.equal(log_probs(engine, batch), clean)
        assert actor.counts.total() == before > 0
