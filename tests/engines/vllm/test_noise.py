"""Noise and dead zone in a real vLLM are those of the trainer: the same log-probabilities, counted where they act."""

from __future__ import annotations

import pytest

import aqn
from aqn.integrations.vllm import inject
from hal.errors import EngineError
from tests.engines.vllm.rollout import PARITY, difference, greedy, rollout_logprobs, trainer_logprobs

ZONE = {"layer": 7, "threshold": 0.05, "scope": "token"}
CONFIGS = {
    "deadzone": {"deadzone": ZONE},
    "sparse_deadzone": {"deadzone": {**ZONE, "threshold": 0.3, "sparsity": 0.1, "seed": 3}},
    "matmul": {"aqn": {"sigma": 0.05}},
    "all_ops": {"aqn": {"sigma": 0.05, "mode": "all_ops"}},
    "one_layer": {"aqn": {"sigma": 0.1, "target_layers": [4]}},
    "layer": {"aqn": {"sigma": 0.05, "kind": "layer"}},
    "weight": {"aqn": {"sigma": 0.02, "kind": "weight"}},
    "matmul_and_deadzone": {"aqn": {"sigma": 0.05}, "deadzone": ZONE},
    "layer_after": {"aqn": {"sigma": 0.1, "kind": "layer"}, "deadzone": {**ZONE, "noise": "after"}},
}


def config(name: str, **noise) -> aqn.AqnConfig:
    document = {section: dict(options) for section, options in CONFIGS[name].items()}
    if noise:
        document["aqn"].update(noise)
    return aqn.AqnConfig.parse(document)


def trained(trainer, ids, wanted, step=0):
    """The trainer's log-probabilities in its rollout phase."""
    with aqn.inject(trainer, wanted, steps=10) as injection, injection.during("rollout"):
        injection.step = step
        return trainer_logprobs(trainer, ids)


@pytest.mark.parametrize("name", CONFIGS)
def test_rollout_agrees_with_the_trainer(engine, trainer, ids, name):
    wanted = config(name)
    expected = trained(trainer, ids, wanted)
    with inject(engine, wanted, steps=10):
        assert difference(rollout_logprobs(engine, ids), expected) < PARITY
        assert difference(rollout_logprobs(engine, ids, batched=True), expected) < PARITY
    assert difference(expected, trainer_logprobs(trainer, ids)) > 0.01  # it was there at all
    assert difference(rollout_logprobs(engine, ids), trainer_logprobs(trainer, ids)) < PARITY  # and is gone


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_agree_with_the_trainer(parallel_engine, trainer, ids, name):
    wanted = config(name)
    expected = trained(trainer, ids, wanted)
    with inject(parallel_engine, wanted, steps=10):
        assert difference(rollout_logprobs(parallel_engine, ids, batched=True), expected) < PARITY
    assert difference(rollout_logprobs(parallel_engine, ids), trainer_logprobs(trainer, ids)) < PARITY


def test_the_step_sets_sigma_and_draws_other_noise(engine, trainer, ids):
    wanted = config("matmul", schedule={"name": "linear", "end": 0.01})
    with inject(engine, wanted, steps=10) as rollout:
        assert rollout.sigma == pytest.approx(0.05)
        first = rollout_logprobs(engine, ids)
        rollout.step = 9
        assert rollout.sigma == pytest.approx(0.01)
        last = rollout_logprobs(engine, ids)
    assert difference(last, trained(trainer, ids, wanted, step=9)) < PARITY
    assert difference(first, last) > 0.01


def test_hits_are_counted_in_the_worker(engine, ids):
    with inject(engine, config("one_layer")) as rollout:
        assert not rollout.counts
        rollout_logprobs(engine, ids[:1])
        once = rollout.counts
        rollout_logprobs(engine, ids[:1])
        twice = rollout.counts
    # q, k, v, o, gate, up and down, in one forward pass of the prompt.
    assert once == {("rollout", 4, "linear"): 7}
    assert twice == {("rollout", 4, "linear"): 14}
    assert rollout.counts == twice


def test_both_processes_count_alike(parallel_engine, ids):
    with inject(parallel_engine, config("matmul_and_deadzone")) as rollout:
        rollout_logprobs(parallel_engine, ids[:1])
        assert rollout.counts == {("rollout", layer, "linear"): 7 for layer in range(12)}
        assert rollout.deadzone_calls == 1


def test_survivors_are_counted(engine, ids):
    with inject(engine, config("deadzone")) as rollout:
        rollout_logprobs(engine, ids)
        assert rollout.survival_rate == 0
    noisy = aqn.AqnConfig.parse({**CONFIGS["layer"], "deadzone": ZONE})
    with inject(engine, noisy) as rollout:
        rollout_logprobs(engine, ids)
        assert 0 < rollout.survival_rate < 0.2


def test_generated_tokens_change_and_come_back(engine, ids):
    before = greedy(engine, ids)
    with inject(engine, config("sparse_deadzone")):
        assert greedy(engine, ids) != before
    assert greedy(engine, ids) == before


def test_cached_prefixes_do_not_outlive_a_change(engine, ids):
    prompt = [ids[2] * 6]  # several blocks of the cache
    clean = greedy(engine, prompt)
    with inject(engine, config("matmul")) as rollout:
        noisy = greedy(engine, prompt)
        rollout.step = 1
        assert greedy(engine, prompt) != noisy
        rollout.step = 0
        assert greedy(engine, prompt) == noisy
    assert greedy(engine, prompt) == clean


def test_nothing_is_left_when_the_block_fails(engine, trainer, ids):
    with pytest.raises(RuntimeError, match="ours"), inject(engine, config("matmul")):
        raise RuntimeError("ours")
    assert difference(rollout_logprobs(engine, ids), trainer_logprobs(trainer, ids)) < PARITY


def test_noise_that_never_acted_is_an_error(engine):
    with pytest.raises(EngineError, match="noise hit nothing"), inject(engine, config("matmul")):
        pass
    with pytest.raises(EngineError, match="never acted"), inject(engine, config("deadzone")):
        pass


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"deadzone": {"layer": 7}}, "scope is 'tensor'.* write scope: token"),
        ({"deadzone": {**ZONE, "layer": 12}}, "layer 12 does not exist: the model has layers 0 to 11"),
        ({"aqn": {"target_layers": [40]}}, "names layer 40"),
        ({"aqn": {"phases": ["actor_forward"]}}, "the engine's is 'rollout'"),
        ({"aqn": {"schedule": "cosine"}}, "pass steps="),
    ],
)
def test_a_configuration_that_cannot_hold_is_refused_in_one_line(engine, trainer, ids, document, message):
    with pytest.raises(EngineError, match=message) as refused, inject(engine, aqn.AqnConfig.parse(document)):
        pass
    assert "\n" not in str(refused.value)
    assert difference(rollout_logprobs(engine, ids[:1]), trainer_logprobs(trainer, ids[:1])) < PARITY


def test_fast_draws_are_refused_where_processes_share_the_model(parallel_engine):
    with (
        pytest.raises(EngineError, match="write draws: exact"),
        inject(parallel_engine, config("matmul", draws="fast")),
    ):
        pass


def test_a_change_is_refused_while_requests_run(engine):
    from vllm import SamplingParams

    core = engine.llm.llm_engine
    core.add_request("running", {"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=400, ignore_eos=True))
    core.step()
    try:
        with pytest.raises(EngineError, match="requests are running"), inject(engine, config("matmul")):
            pass
    finally:
        core.abort_request(["running"])
        while core.has_unfinished_requests():
            core.step()
