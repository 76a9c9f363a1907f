"""The model inside a running vLLM is scanned where it lies: healthy as it is, and with the fault that was put in."""

from __future__ import annotations

import pytest

from aqn import AqnConfig
from aqn.integrations.vllm import inject
from hal.engines.worker import EngineWorker, worker_function
from hal.errors import EngineError, UsageError
from srdd.faults.simulate import simulate
from srdd.faults.specification import parse_fault
from srdd.live import scan_engine
from tests.engines.vllm.rollout import PARITY, difference, rollout_logprobs, trainer_logprobs

SHORT = ("The quick brown fox jumps over the lazy dog.",)  # what a fault shows in, in a few seconds
FAULTS = ["dead_zone@7:sparsity=0.1", "saturation@3", "bias@10:sparsity=0.1", "noise@5:magnitude=0.1", "spike@0"]


@worker_function
def put_fault(worker: EngineWorker, text: str) -> None:
    """As hardware would: nothing outside the model knows."""
    worker.state["fault"] = simulate(worker.model, [parse_fault(text)])
    worker.state["fault"].__enter__()


@worker_function
def take_fault(worker: EngineWorker) -> None:
    worker.state.pop("fault").__exit__(None, None, None)


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_healthy_engine_is_healthy(engine, level):
    (report,) = scan_engine(engine, level=level)
    assert report.verdict == "healthy", [(f.site, f.kind, f.evidence[0]) for f in report.findings]
    assert len(report.measurements.layers) == 12
    assert report.level == level
    if level == "full":
        sites = {entry.site.removeprefix("model.layers.0.") for entry in report.measurements.layers[0].replay}
        assert {"self_attn.q_proj", "self_attn", "mlp.gate_proj", "mlp.down_proj", "post_attention_layernorm"} <= sites
        assert report.measurements.notes == ()


@pytest.mark.parametrize("text", FAULTS)
def test_the_fault_is_found_where_it_is(engine, text):
    engine.call(put_fault, text=text)
    try:
        (report,) = scan_engine(engine, SHORT, level="full")
    finally:
        engine.call(take_fault)
    fault = parse_fault(text)
    assert report.verdict == "faulty"
    assert report.findings[0].layer == fault.layer
    assert {finding.layer for finding in report.findings} == {fault.layer}


@pytest.mark.parametrize("site", ["self_attn.o_proj", "mlp.down_proj", "post_attention_layernorm"])
def test_the_module_at_fault_is_named(engine, site):
    engine.call(put_fault, text=f"bias@6:site={site}")
    try:
        (report,) = scan_engine(engine, SHORT, level="full")
    finally:
        engine.call(take_fault)
    assert report.findings[0].site == f"model.layers.6.{site}"


def test_a_rollouts_dead_zone_is_a_fault_to_the_scan(engine):
    config = AqnConfig.parse({"deadzone": {"layer": 4, "threshold": 0.1, "scope": "token"}})
    with inject(engine, config):
        (report,) = scan_engine(engine, level="quick")
    assert {finding.layer for finding in report.findings} == {4}


def test_two_processes_report_alike(parallel_engine):
    reports = scan_engine(parallel_engine, SHORT, level="full")
    assert [report.environment["rank"] for report in reports] == ["0 of 2", "1 of 2"]
    assert [report.verdict for report in reports] == ["healthy"] * 2
    parallel_engine.call(put_fault, text="bias@6:sparsity=0.1")
    try:
        faulty = scan_engine(parallel_engine, level="quick")
    finally:
        parallel_engine.call(take_fault)
    assert [{finding.layer for finding in report.findings} for report in faulty] == [{6}, {6}]


def test_a_scan_leaves_the_engine_as_it_was(engine, trainer, ids):
    scan_engine(engine, SHORT, level="full")
    assert difference(rollout_logprobs(engine, ids), trainer_logprobs(trainer, ids)) < PARITY


def test_a_report_can_be_kept(engine, tmp_path):
    from srdd.report import load_report

    (report,) = scan_engine(engine, level="quick")
    report.save(tmp_path / "engine.json")
    assert load_report(tmp_path / "engine.json").rediagnosed().verdict == report.verdict


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "deep"}, "unknown level 'deep'"),
        ({"prompts": []}, "prompts"),
        ({"checkpoint": "/nowhere"}, "/nowhere is none"),
    ],
)
def test_bad_options_are_refused_in_one_line(engine, options, message):
    with pytest.raises(UsageError, match=message) as refused:
        scan_engine(engine, **options)
    assert "\n" not in str(refused.value)


def test_a_failed_scan_is_said_and_leaves_the_engine_alive(engine, trainer, ids, tmp_path):
    with pytest.raises(EngineError, match="cannot build"):
        scan_engine(engine, checkpoint=tmp_path)
    assert difference(rollout_logprobs(engine, ids[:1]), trainer_logprobs(trainer, ids[:1])) < PARITY
