"""What runs beside the model in an engine's worker, on a model in this process: no engine is needed to see it work."""

from __future__ import annotations

import json

import pytest
import torch

from aqn import AqnConfig
from aqn.integrations import worker as beside
from aqn.integrations.counting import agreed, merge_counts, survival
from hal.engines.worker import EngineWorker, name_of, outcome, results
from hal.errors import EngineError, HookError, UsageError
from tests.conftest import random_model

NOISE = {"aqn": {"sigma": 0.1, "schedule": {"name": "linear", "end": 0.0}}}
ZONE = {"deadzone": {"layer": 1, "threshold": 0.3, "scope": "token"}}
IDS = torch.arange(12).reshape(1, 12)


def make_worker(compiled: str = "", ranks: int = 1) -> EngineWorker:
    return EngineWorker(random_model("qwen2", layers=2), 0, ranks, compiled, {})


def call(worker, function, **arguments):
    """As an engine calls it: by name, through plain values."""
    return results([outcome(lambda: worker, name_of(function), json.loads(json.dumps(arguments)))])[0]


def logits(worker):
    with torch.no_grad():
        return worker.model(IDS).logits


def test_noise_comes_changes_with_the_step_and_goes():
    worker = make_worker()
    clean = logits(worker)
    state = call(worker, beside.install, document=NOISE, steps=3)
    assert (state["step"], state["phase"], state["sigma"], state["hits"]) == (0, "rollout", 0.1, [])
    first = logits(worker)
    assert not torch.equal(first, clean)
    assert call(worker, beside.set_step, step=1)["sigma"] == pytest.approx(0.05)
    assert not torch.equal(logits(worker), first)
    last = call(worker, beside.remove)
    assert last["hits"] == [["rollout", 0, "linear", 14], ["rollout", 1, "linear", 14]]
    assert torch.equal(logits(worker), clean)
    assert call(worker, beside.remove) is None


def test_another_configuration_takes_the_place_of_the_first():
    worker = make_worker()
    call(worker, beside.install, document=NOISE, steps=3)
    call(worker, beside.install, document=ZONE)
    logits(worker)
    state = call(worker, beside.state)
    assert state["hits"] == []
    assert state["deadzone"]["calls"] == 1
    assert state["deadzone"]["would_be_dead"] > 0 == state["deadzone"]["survived"]


def test_a_phase_without_noise_is_clean():
    worker = make_worker()
    clean = logits(worker)
    call(worker, beside.install, document=NOISE, steps=3)
    call(worker, beside.set_step, step=0, phase="validation")
    assert torch.equal(logits(worker), clean)
    assert call(worker, beside.state)["hits"] == []


def test_a_refused_configuration_leaves_the_one_in_force():
    worker = make_worker()
    call(worker, beside.install, document=NOISE, steps=3)
    with pytest.raises(EngineError, match="names layer 9"):
        call(worker, beside.install, document={"aqn": {"target_layers": [9]}})
    assert call(worker, beside.state)["sigma"] == 0.1


def test_hooks_that_would_not_run_are_refused():
    with pytest.raises(EngineError, match=r"compiled graphs \(graph mode FULL\).*enforce_eager=True"):
        call(make_worker("graph mode FULL"), beside.install, document=NOISE, steps=3)


@pytest.mark.parametrize(
    ("document", "ranks", "message"),
    [
        ({"deadzone": {"layer": 1}}, 1, "write scope: token"),
        ({"aqn": {"sigma": 0.1, "draws": "fast"}}, 2, "write draws: exact"),
        ({"aqn": {"sigma": 0.1, "phases": ["validation"]}}, 1, "the engine's is 'rollout'"),
    ],
)
def test_what_means_something_else_in_an_engine_is_refused(document, ranks, message):
    with pytest.raises(UsageError, match=message):
        beside.install(make_worker(ranks=ranks), document)


def test_noise_that_hit_nothing_is_an_error_when_asked_for():
    worker = make_worker()
    call(worker, beside.install, document=NOISE, steps=3)
    with pytest.raises(EngineError, match="noise hit nothing"):
        call(worker, beside.remove)
    call(worker, beside.install, document=NOISE, steps=3)
    assert call(worker, beside.remove, check=False)["hits"] == []


def test_nothing_to_change_is_said():
    with pytest.raises(EngineError, match="install a configuration first"):
        call(make_worker(), beside.set_step, step=1)


def test_a_result_that_cannot_leave_its_process_is_an_error_and_no_silence():
    answer = outcome(make_worker, name_of(beside.state), {})
    assert "install a configuration first" in answer["error"]
    with pytest.raises(EngineError, match="not marked"):
        name_of(logits)


STATE = {"hits": [["rollout", 0, "linear", 7]], "deadzone": {"would_be_dead": 8, "survived": 2}, "sigma": 0.1}


def test_processes_that_share_a_layer_must_agree_and_stages_add_up():
    other = {**STATE, "hits": [["rollout", 1, "linear", 5]]}
    assert merge_counts([STATE, STATE, other]) == {("rollout", 0, "linear"): 7, ("rollout", 1, "linear"): 5}
    with pytest.raises(EngineError, match="layer 0 7 and 6 times"):
        merge_counts([STATE, {**STATE, "hits": [["rollout", 0, "linear", 6]]}])
    assert agreed([STATE, other], "sigma") == 0.1
    with pytest.raises(EngineError, match="disagree on sigma"):
        agreed([STATE, {**STATE, "sigma": 0.2}], "sigma")


def test_survival_is_taken_over_all_processes():
    more = {**STATE, "deadzone": {"would_be_dead": 2, "survived": 2}}
    assert survival([STATE, more]) == 0.4
    assert survival([{**STATE, "deadzone": {"would_be_dead": 0, "survived": 0}}]) != 0.4


def test_a_pipeline_stage_carries_the_noise_of_its_layers_only():
    """Stages hold stand-ins for each other's layers: none misses hits for those, and none for a dead zone elsewhere."""
    worker = make_worker()
    worker.model.model.layers[0] = torch.nn.Identity()
    document = {**NOISE, "deadzone": {**ZONE["deadzone"], "layer": 0}}
    worker.model.model.layers[0].forward = lambda x, **_: x
    call(worker, beside.install, document=document, steps=3)
    logits(worker)
    assert call(worker, beside.remove)["hits"] == [["rollout", 1, "linear", 7]]


def test_the_document_survives_the_journey():
    config = AqnConfig.parse({**NOISE, **ZONE, "srdd_metadata": {"num_layers": 2}})
    document = json.loads(json.dumps(config.model_dump(mode="json", by_alias=True, exclude_none=True)))
    assert AqnConfig.parse(document) == config
    assert issubclass(EngineError, UsageError)
    assert not issubclass(HookError, UsageError)
