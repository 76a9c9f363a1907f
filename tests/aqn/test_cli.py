"""The command line: what it writes, what it refuses in one line, and its exit codes."""

from __future__ import annotations

import json

import pytest
import yaml

import srdd
from aqn.cli import main
from hal.bundled import model_dir
from hal.models import load_model
from hal.registry import get_backend
from srdd.faults import Fault, simulate

HOST = ["--backend", "cpu-reference"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    loaded = load_model(model_dir(), get_backend("cpu-reference"))
    with simulate(loaded.model, [Fault("dead_zone", 4)]):
        scanned = srdd.scan(loaded.model, loaded.tokenizer, level="quick")
    path = tmp_path_factory.mktemp("report") / "report.json"
    scanned.save(path)
    return path


def test_guide_from_a_report(report, tmp_path, capsys):
    output = tmp_path / "aqn.yaml"
    assert main(["guide", "--report", str(report), "-o", str(output)]) == 0
    document = yaml.safe_load(output.read_text())
    assert document["aqn"]["base_sigma"] == 0.05
    assert 4 in document["aqn"]["high_priority_layers"]
    assert "↑ HIGH" in capsys.readouterr().out


def test_guide_scans_when_it_has_no_report(tmp_path):
    output = tmp_path / "aqn.yaml"
    arguments = ["guide", *HOST, "--inject", "dead_zone@2", "--inject", "saturation@9:magnitude=0.5"]
    assert main([*arguments, "--base-sigma", "0.04", "-o", str(output), "--quiet"]) == 0
    document = yaml.safe_load(output.read_text())
    assert {2, 9} <= set(document["aqn"]["high_priority_layers"])
    assert document["srdd_metadata"]["verdict"] == "faulty"


def test_schedule_prints_and_plots(tmp_path, capsys):
    plot = tmp_path / "curve.svg"
    options = ["--steps", "116", "--option", "epochs=2", "--plot", str(plot)]
    assert main(["schedule", "epoch_aware", *options]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["step", "0", "sigma", "0.050000"]
    assert shown[-1].split() == ["step", "115", "sigma", "0.000500"]
    assert "<svg" in plot.read_text()


def test_an_experiment_writes_its_result_with_the_command(tmp_path):
    options = ["--layers", "7", "--thresholds", "0.5", "--samples", "2", "--seeds", "2", "--out", str(tmp_path / "r")]
    assert main(["experiment", "injection", *HOST, *options, "--quiet"]) == 0
    document = json.loads((tmp_path / "r" / "injection.json").read_text())
    assert document["options"]["command"].startswith("python -m aqn")
    assert (tmp_path / "r" / "injection.md").is_file()


def test_training_from_the_command_line_is_resumable(tmp_path, capsys):
    options = [
        "--method",
        "supervised",
        "--arms",
        "baseline,noise",
        "--steps",
        "2",
        "--prompts",
        "2",
        "--evaluated",
        "2",
    ]
    command = ["train", *HOST, *options, "--seeds", "2", "--out", str(tmp_path)]
    assert main(command) == 0
    before = (tmp_path / "noise-seed1.json").read_bytes()
    assert main(command) == 0
    assert (tmp_path / "noise-seed1.json").read_bytes() == before
    assert {"training.json", "training.md", "training.svg", "curves.svg"} <= {path.name for path in tmp_path.iterdir()}
    assert "accuracy with the fault" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["guide", "--report", "none.json"], "none.json"),
        (["guide", "--report", "none.json", "--inject", "bias@1"], "give one of them"),
        (["guide", *HOST, "--inject", "bais@1"], "did you mean 'bias'"),
        (["guide", *HOST, "-o", "/nowhere/aqn.yaml"], "/nowhere/aqn.yaml"),
        (["schedule", "cosin"], "did you mean 'cosine'"),
        (["schedule", "linear", "--option", "end"], "not KEY=VALUE"),
        (["experiment", "injection", *HOST, "--layers", "x"], "--layers x"),
        (["experiment", "injection", *HOST, "--kind", "all"], "kind 'all'"),
        (["experiment", "injection", *HOST, "--task", "poetry"], "task 'poetry'"),
        (["experiment", "injection", *HOST, "--layers", "99"], "layer 99 does not exist"),
        (["robustness", *HOST, "--noise", "loud"], "--noise loud"),
        (["robustness", *HOST, "--mode", "some"], "mode 'some'"),
        (["robustness", *HOST, "--checkpoint", "/nowhere", "--data", "x.jsonl"], "/nowhere"),
        (["train", *HOST, "--out", "r", "--method", "dpo"], "method 'dpo'"),
        (["train", *HOST, "--out", "r", "--steps", "5"], "do not divide into 2 epochs"),
        (["train", *HOST, "--out", "r", "--data", "x.jsonl"], "belong together"),
        (["train", *HOST, "--out", "/proc/none", "--method", "supervised"], "cannot make the folder"),
        (["experiment"], "Usage"),
        (["experimnt"], "No such command"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert words in shown.err + shown.out
    assert "Traceback" not in shown.err
    if words != "Usage":
        assert shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_backend_that_cannot_run_here_is_exit_code_three(capsys):
    assert main(["guide", "--backend", "cuda"]) == 3
    assert "unavailable" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [[], ["guide"], ["experiment", "injection"], ["train"], ["robustness"], ["schedule"]]
)
def test_help_is_there(command, capsys):
    assert main([*command, "--help"]) == 0
    assert "Usage: python -m aqn" in capsys.readouterr().out
