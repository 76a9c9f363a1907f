"""Functions run beside the model inside a real vLLM's workers; an engine that cannot be used is refused in a line."""

from __future__ import annotations

import pytest
import vllm
from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode

from hal.engines.vllm import VllmEngine, _compiled
from hal.engines.worker import EngineWorker, worker_function
from hal.errors import EngineError, ModelError
from hal.structure import find_layer_stack
from tests.engines.vllm.rollout import PARITY, difference, greedy, rollout_logprobs, trainer_logprobs


@worker_function
def layers_here(worker: EngineWorker) -> list:
    stack = find_layer_stack(worker.model)
    return [stack.path, len(stack), list(stack.present), worker.rank, worker.ranks, worker.compiled]


@worker_function
def count_up(worker: EngineWorker, by: int) -> int:
    worker.state["count"] = worker.state.get("count", 0) + by
    return worker.state["count"]


@worker_function
def fail(worker: EngineWorker) -> None:
    raise ModelError("layer 99 does not exist: the model has layers 0 to 11")


def unmarked(worker: EngineWorker) -> None: ...


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_a_clean_engine_says_what_transformers_says(engine, trainer, ids, batched):
    assert difference(rollout_logprobs(engine, ids, batched), trainer_logprobs(trainer, ids)) < PARITY


def test_two_processes_say_what_transformers_says(parallel_engine, trainer, ids):
    assert difference(rollout_logprobs(parallel_engine, ids, True), trainer_logprobs(trainer, ids)) < PARITY


def test_a_function_sees_the_model_in_its_worker(engine):
    assert engine.call(layers_here) == [["model.layers", 12, list(range(12)), 0, 1, ""]]


def test_every_process_is_asked_and_answers_in_order(parallel_engine):
    assert [answer[3:5] for answer in parallel_engine.call(layers_here)] == [[0, 2], [1, 2]]


def test_state_is_kept_between_calls(engine):
    before = engine.call(count_up, by=0)[0]
    assert engine.call(count_up, by=3) == [before + 3]
    assert engine.call(count_up, by=4) == [before + 7]


def test_an_error_in_a_worker_arrives_as_its_one_line(engine):
    with pytest.raises(EngineError, match=r"^layer 99 does not exist: the model has layers 0 to 11$"):
        engine.call(fail)
    assert engine.call(count_up, by=0)  # and the worker lives


def test_only_marked_functions_run(engine):
    with pytest.raises(EngineError, match="not marked"):
        engine.call(unmarked)
    answers = engine.llm.collective_rpc("hal_call", args=(f"{__name__}:unmarked", {}))
    assert "no function for workers" in answers[0]["error"]
    assert "no function for workers" in engine.llm.collective_rpc("hal_call", args=("os:getcwd", {}))[0]["error"]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("0.22.1", r"vLLM 0\.22\.1 is older .* install vllm>=0\.23,<0\.33"),
        ("0.33.0", r"vLLM 0\.33\.0 is newer"),
        ("1.0.0+cpu", "newer"),
        ("dev", "no release"),
    ],
)
def test_another_release_is_refused_in_one_line(engine, monkeypatch, version, message):
    monkeypatch.setattr(vllm, "__version__", version)
    with pytest.raises(EngineError, match=message) as refused:
        VllmEngine(engine.llm)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("version", ["0.23.0", "0.32.1+cpu"])
def test_releases_in_the_range_are_taken(engine, monkeypatch, version):
    monkeypatch.setattr(vllm, "__version__", version)
    VllmEngine(engine.llm)


@pytest.mark.parametrize("configured", ["", "tests.engines.vllm.test_engine.Other"])
def test_an_engine_without_the_extension_is_refused(engine, monkeypatch, configured):
    monkeypatch.setattr(engine.llm.llm_engine.vllm_config.parallel_config, "worker_extension_cls", configured)
    with pytest.raises(EngineError, match=r"worker_extension_cls='hal\.engines\.vllm\.WorkerExtension'"):
        VllmEngine(engine.llm)


class Other: ...


def test_what_is_no_engine_is_refused():
    with pytest.raises(EngineError, match=r"a str is no vllm\.LLM"):
        VllmEngine("model")


def test_prefixes_cached_before_a_change_are_forgotten(engine, ids):
    long = [ids[2] * 4]
    greedy(engine, long, 1)
    first = engine.llm.generate([{"prompt_token_ids": long[0]}], _one_token(), use_tqdm=False)[0]
    assert first.num_cached_tokens > 0
    engine.change(count_up, by=0)
    assert engine.llm.generate([{"prompt_token_ids": long[0]}], _one_token(), use_tqdm=False)[0].num_cached_tokens == 0


def _one_token():
    return vllm.SamplingParams(temperature=0, max_tokens=1)


@pytest.mark.parametrize(
    ("mode", "graphs", "expected"),
    [
        (CompilationMode.NONE, CUDAGraphMode.NONE, ""),
        (CompilationMode.VLLM_COMPILE, CUDAGraphMode.NONE, "compilation mode VLLM_COMPILE"),
        (CompilationMode.NONE, CUDAGraphMode.FULL, "graph mode FULL"),
        (
            CompilationMode.VLLM_COMPILE,
            CUDAGraphMode.FULL_AND_PIECEWISE,
            "compilation mode VLLM_COMPILE, graph mode FULL_AND_PIECEWISE",
        ),
    ],
)
def test_an_engine_that_would_skip_hooks_is_known(mode, graphs, expected):
    config = CompilationConfig(mode=mode)
    config.cudagraph_mode = graphs
    assert _compiled(config) == expected
    if expected:
        with pytest.raises(EngineError, match="enforce_eager=True"):
            EngineWorker(None, 0, 1, _compiled(config), {}).require_hooks()
