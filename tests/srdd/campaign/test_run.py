"""Campaigns run for real, on a small checkpoint at level quick."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

import srdd.campaign.execute
from hal import get_backend
from hal.errors import ModelError, UsageError
from srdd.campaign.case import Case
from srdd.campaign.execute import CaseScanner, Setup
from srdd.campaign.file import read_campaign
from srdd.campaign.provenance import provenance
from srdd.campaign.run import default_jobs, parse_shard, plan_campaign, require_directory, run_plan
from srdd.campaign.workers import scan_all
from srdd.cli import main
from srdd.faults import Fault

BACKEND = "cpu-reference"
BIAS = {"kind": "bias", "layer": 2}
SILENT = {"kind": "bias", "layer": 2, "operator": "gelu"}
HIDDEN = {"kind": "rounding", "layer": 2, "units": 1}  # from the probes on the device
IMPOSSIBLE = {"kind": "bias", "layer": 2, "sparsity": 0.001}  # hits no unit of 32


def fault_case(**options):
    return Case("float32", "quick", ("There are 12 trains and 30 maps.",), Fault(**{**BIAS, **options}))


@pytest.fixture(scope="module")
def setup(checkpoint):
    return Setup(checkpoint, BACKEND)


@pytest.fixture(scope="module")
def scanner(setup):
    return CaseScanner(setup)


@pytest.fixture
def plan(write, checkpoint):
    """Plan a campaign of these entries on the small checkpoint."""

    def of(**entries):
        document = read_campaign(str(write(**{"dtypes": ["float32"], "level": "quick", **entries})))
        return plan_campaign(document, BACKEND, model=checkpoint)

    return of


# -- one case -----------------------------------------------------------------------------------------------


def test_an_outcome_says_what_the_fault_did_and_what_was_found(scanner):
    outcome = scanner.scan("key", fault_case())
    assert outcome.key == "key"
    assert outcome.place == "model.layers.2"
    assert outcome.calls > 1
    assert outcome.changed > 100
    assert [(entry.layer, entry.kind) for entry in outcome.findings] == [(2, "bias")]
    assert outcome.wall_s > 0
    assert outcome.error == ""


def test_a_clean_control_scanned_after_a_fault_is_healthy(scanner):
    scanner.scan("key", fault_case(site="mlp.down_proj", parameter="weight"))
    outcome = scanner.scan("key", Case("float32", "quick", ("Some text to scan.",)))
    assert (outcome.calls, outcome.changed, outcome.findings, outcome.error) == (0, 0, (), "")


def test_a_case_that_cannot_be_scanned_says_why(scanner):
    outcome = scanner.scan("key", fault_case(site="mlp.none"))
    assert "mlp.none" in outcome.error
    assert outcome.findings == ()


def test_a_fault_that_would_hit_nothing_is_impossible_not_missed(scanner):
    outcome = scanner.scan("key", fault_case(sparsity=0.001))
    assert "hits none of them" in outcome.impossible
    assert (outcome.changed, outcome.findings, outcome.error) == (0, (), "")


def test_the_scan_is_told_nothing_of_the_fault(scanner, monkeypatch):
    told = []

    def listen(*args, **kwargs):
        told.extend([*args, *kwargs.values()])
        raise RuntimeError("heard enough")

    monkeypatch.setattr(srdd.campaign.execute, "scan", listen)
    case = fault_case()
    assert "heard enough" in scanner.scan("key", case).error
    loaded = scanner.prepare("float32")
    model, tokenizer, backend, *others = told
    assert (model, tokenizer, backend.name) == (loaded.model, loaded.tokenizer, BACKEND)
    assert others == [case.prompts, "quick", loaded.directory, case.trials]


def test_a_campaign_needs_a_tokenizer(copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(UsageError, match="a campaign needs a tokenizer"):
        CaseScanner(Setup(copy, BACKEND)).prepare("float32")


# -- what decides an outcome --------------------------------------------------------------------------------


def test_another_weight_is_another_model(checkpoint, copy):
    backend = get_backend(BACKEND)
    before = provenance(backend, checkpoint)
    assert provenance(backend, copy) == before
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    after = provenance(backend, copy)
    assert {name for name in before if before[name] != after[name]} == {"model"}
    assert {"srdd-hal", "code", "backend", "torch", "transformers"} < before.keys()


# -- processes ----------------------------------------------------------------------------------------------


def children():
    """The processes that scan, without multiprocessing's own."""
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_a_process_that_dies_costs_its_case_alone(setup):
    work = [(f"case {number}", fault_case(seed=number)) for number in range(5)]
    outcomes = scan_all(work, setup, jobs=1, timeout_s=300)
    first = next(outcomes)
    [worker] = children()
    worker.suspend()  # while it has the second case in hand, given out when the first came back
    worker.send_signal(signal.SIGKILL)
    rest = list(outcomes)
    assert [entry.key for entry in [first, *rest]] == [key for key, _ in work]
    failed = [entry for entry in [first, *rest] if entry.error]
    assert [entry.error for entry in failed] == ["its process ended by SIGKILL"]
    assert all(entry.findings for entry in [first, *rest] if not entry.error)
    assert children() == []


def test_a_case_that_takes_too_long_is_given_up(setup):
    work = [(f"case {number}", fault_case(seed=number)) for number in range(2)]
    outcomes = list(scan_all(work, setup, jobs=1, timeout_s=0.05))
    assert [entry.error for entry in outcomes] == ["stopped after 0.05 s"] * 2
    assert children() == []


def test_a_model_that_cannot_be_loaded_ends_the_run(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="truncated"):
        list(scan_all([("key", fault_case())], Setup(copy, BACKEND), jobs=1, timeout_s=300))
    assert children() == []


# -- a whole run --------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_another_stopped_and_the_shards_of_a_campaign_add_up(plan, tmp_path):
    made = plan(grids=[{"each": {"kind": ["bias", "scale"], "layer": "all"}}], clean={"count": 2})
    assert len(made.cases) == 10
    seen = []
    first = run_plan(made.part(None, (1, 2)), tmp_path, 1, 300, (1, 2))
    again = run_plan(made.part(None, (1, 2)), tmp_path, 1, 300, (1, 2), lambda entry, done: seen.append((entry, done)))
    assert again == first
    assert seen == [(None, 5)]
    run_plan(made.part(None, (2, 2)), tmp_path, 1, 300, (2, 2))
    seen.clear()
    whole = run_plan(made, tmp_path, 1, 300, progress=lambda entry, done: seen.append((entry, done)))
    assert seen == [(None, 10)]
    assert [entry.key for entry in whole] == list(made.cases)
    assert all(not entry.error for entry in whole)
    assert sum(len(path.read_text().splitlines()) for path in tmp_path.glob("cases*.jsonl")) == 10


def test_a_campaign_killed_in_the_middle_scans_every_case_once(write, checkpoint, tmp_path):
    path = write(
        dtypes=["float32"],
        level="quick",
        grids=[{"each": {"kind": ["bias", "scale", "noise"], "layer": "all"}, "repeats": 2}],
    )
    out = tmp_path / "out"
    options = [str(path), "--out", str(out), "--model", str(checkpoint), "--backend", BACKEND, "--jobs", "1", "--quiet"]
    command = [sys.executable, "-m", "srdd", "campaign", *options]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    journal = out / "cases.jsonl"
    deadline = time.monotonic() + 200
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = psutil.Process(running.pid).children()
    running.send_signal(signal.SIGKILL)
    running.communicate()
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers), "a worker outlived its campaign"
    before = journal.read_bytes()
    assert 3 <= before.count(b"\n") < 24
    assert not (out / "result.json").exists()

    assert main(["campaign", *options]) == 0
    after = journal.read_bytes()
    assert after.startswith(before[: before.rindex(b"\n") + 1])
    keys = [json.loads(line)["key"] for line in after.splitlines()]
    assert len(keys) == len(set(keys)) == 24
    assert json.loads((out / "result.json").read_text())["cases"] == {"all": 24, "scored": 24}


# -- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "part"), [("1/1", (1, 1)), ("3/4", (3, 4))])
def test_a_shard_is_a_number_of_a_number(text, part):
    assert parse_shard(text) == part


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "a/b", "1/", "-1/4", "1/4/2"])
def test_a_shard_that_is_none_is_named(text):
    with pytest.raises(UsageError, match=f"shard '{text}' is not K/N"):
        parse_shard(text)


def test_as_many_processes_as_processors_and_memory_allow(checkpoint, monkeypatch):
    backend = get_backend(BACKEND)
    assert 1 <= default_jobs(backend, checkpoint) <= os.cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(4096)))
    memory = psutil.virtual_memory().total // 2**30
    assert 1 <= default_jobs(backend, checkpoint) <= memory + 1


def test_a_directory_is_made_where_its_parent_exists(tmp_path):
    assert require_directory(tmp_path / "out").is_dir()
    assert require_directory(tmp_path / "out").is_dir()
    with pytest.raises(UsageError, match="cannot make directory"):
        require_directory(tmp_path / "none" / "out")


# -- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def campaign(write, checkpoint, capsys):
    """Run the command on a campaign of these entries; returns exit code, standard output and error."""

    def run(*options, **entries):
        path = write(**{"dtypes": ["float32"], "level": "quick", **entries})
        arguments = ["campaign", str(path), "--backend", BACKEND, "--model", str(checkpoint), "--jobs", "1"]
        code = main([*arguments, *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_every_fault_found_and_no_alarm_exits_with_0_and_writes_both_results(campaign, tmp_path):
    out, alone = tmp_path / "out", tmp_path / "alone.json"
    code, text, err = campaign("--out", out, "--json", alone, faults=[BIAS], clean={"count": 1})
    assert (code, err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["cases.jsonl", "result.json", "result.md"]
    result = json.loads((out / "result.json").read_text())
    assert json.loads(alone.read_text()) == result
    assert result["schema"] == "srdd-campaign-result/1"
    assert result["rates"]["layer"] == {"count": 1, "of": 1, "low": pytest.approx(0.2065, abs=1e-3), "high": 1.0}
    assert result["rates"]["false_alarms"]["count"] == 0
    assert result["confusion"] == {"bias": {"bias": 1}}
    assert result["campaign"]["faults"] == [BIAS]
    assert result["command"] == f"python -m srdd campaign mine.json --backend {BACKEND} --model {result['model']}"
    page = (out / "result.md").read_text()
    assert "| its layer is the first finding (outside the layers: its module) | 1/1 | 100.0 | 20.7 to 100.0 |" in page
    assert "bias" in text


def test_a_miss_exits_with_1_and_is_listed(campaign, tmp_path):
    alone = tmp_path / "alone.json"
    code, text, _ = campaign("--json", alone, "--quiet", faults=[BIAS, HIDDEN, IMPOSSIBLE, SILENT])
    assert code == 1
    assert text == "layer 1/2, operator 0/0, kind 1/2, false_alarms 0/0\n"
    result = json.loads(alone.read_text())
    assert [entry["fault"].split(":")[0] for entry in result["misses"]] == ["rounding@2"]
    assert result["errors"] == []
    assert [entry["calls"] for entry in result["unchanged"]] == [0, 0]
    assert sorted(entry["impossible"][:13] for entry in result["unchanged"]) == ["", "sparsity 0.00"]


def test_list_says_how_many_cases_there_are_and_scans_nothing(campaign, tmp_path):
    code, text, _ = campaign("--list", "--out", tmp_path / "out", faults=[BIAS], clean={"count": 2})
    assert (code, text) == (0, "3 cases: 2 clean float32, 1 fault float32\n")
    assert not (tmp_path / "out").exists()
    assert campaign("--list", "--limit", 2, faults=[BIAS], clean={"count": 2})[1].startswith("2 cases")
    assert campaign("--list", "--shard", "2/2", faults=[BIAS], clean={"count": 2})[1].startswith("1 cases")


@pytest.mark.parametrize(
    ("options", "entries", "message"),
    [
        ([], {"fautls": []}, "breaks srdd-campaign/1 at fautls"),
        ([], {"faults": [{**BIAS, "layer": 7}]}, "faults[0]: layer 7 must be 0 to 3"),
        ([], {"faults": [{**BIAS, "site": "nosuch"}]}, "has no module 'nosuch'"),
        ([], {"prompts": "none.txt", "faults": [BIAS]}, "none.txt"),
        (["--shard", "3/2"], {"faults": [BIAS]}, "shard '3/2' is not K/N"),
        (["--shard", "9/9", "--list"], {"faults": [BIAS]}, "this shard has no case"),
        (["--shard", "9/9"], {"faults": [BIAS]}, "this shard has no case"),
        (["--jobs", "0"], {"faults": [BIAS]}, "--jobs"),
        (["--limit", "0"], {"faults": [BIAS]}, "--limit"),
        (["--json", "/none/result.json"], {"faults": [BIAS]}, "cannot write /none/result.json"),
        (["--out", "/none/of/this"], {"faults": [BIAS]}, "cannot make directory /none/of/this"),
        (["--model", "/none"], {"faults": [BIAS]}, "/none does not exist"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(campaign, options, entries, message):
    code, text, err = campaign(*options, **entries)
    assert (code, text) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
