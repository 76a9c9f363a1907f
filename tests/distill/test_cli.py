"""The command line: what it prints and writes, what it refuses in one line, and its exit codes."""

from __future__ import annotations

import json

import pytest

from distill import cli
from distill.cli import main
from hal.bundled import model_dir
from hal.errors import UsageError
from tests.conftest import byte_level_tokenizer, random_model

HOST = ["--backend", "cpu-reference"]


def test_a_diagnosis_is_printed_and_written(tmp_path, capsys):
    path = tmp_path / "diagnosis.json"
    assert main(["diagnose", *HOST, "--samples", "3", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "qwen2-arithmetic-12l cut learns from qwen2-arithmetic-12l; 12 examples, 4 a batch" in printed
    assert "attention weighting changes the loss of keys and values by" in printed
    document = json.loads(path.read_text())
    assert set(document["scales"]) == {"ce", "kv", "kv_weighted", "codi", "cka"}
    assert any(line.startswith("CKA: ") for line in document["advice"])


def test_advice_that_is_taken_is_not_given_again(tmp_path):
    path, config = tmp_path / "diagnosis.json", tmp_path / "distill.yaml"
    config.write_text("weights: {cka: 0.6}\n")
    assert main(["diagnose", *HOST, "--config", str(config), "--json", str(path), "--quiet"]) == 0
    assert not any(line.startswith("CKA") for line in json.loads(path.read_text())["advice"])


def test_a_teacher_and_data_of_ones_own(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"What is {at}+2?", "answer": str(at + 2)} for at in range(8)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    models = ["--teacher", str(model_dir()), "--teacher", str(model_dir()), "--student", str(model_dir())]
    assert main(["diagnose", *HOST, *models, "--data", str(data), "--samples", "2"]) == 0
    printed = capsys.readouterr().out
    assert "learns from qwen2-arithmetic-12l, qwen2-arithmetic-12l; 8 examples" in printed


def test_a_teacher_without_data_is_given_english(capsys):
    models = ["--teacher", str(model_dir()), "--student", str(model_dir())]
    assert main(["diagnose", *HOST, *models, "--samples", "2"]) == 0
    printed = capsys.readouterr().out
    assert "8 examples, 4 a batch" in printed
    assert "0.0000 ± 0.0000" in printed  # a student that is its teacher


def test_without_a_folder_nothing_is_left_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--steps", "2", "--batch", "2", "--seeds", "1", "--evaluated", "4", "--arms", "baseline"]
    assert main(["train", *HOST, *options]) == 0
    assert "baseline" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_training_is_compared_and_written(tmp_path, capsys):
    options = ["--steps", "4", "--batch", "4", "--seeds", "2", "--evaluated", "10", "--arms", "baseline,shuffled"]
    assert main(["train", *HOST, *options, "--out", str(tmp_path / "out"), "--save-students"]) == 0
    assert "shuffled" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "result.json").read_text())
    assert document["settings"]["recipe"] == {"steps": 4, "batch": 4, "rate": 5e-4}
    assert document["arms"] == ["baseline", "shuffled"]
    assert (tmp_path / "out" / "result.md").read_text().startswith("# Distillation")
    assert (tmp_path / "out" / "shuffled" / "model.safetensors").is_file()
    assert main(["train", *HOST, *options, "--batch", "8", "--out", str(tmp_path / "out")]) == 2
    assert "holds runs of other settings (recipe)" in capsys.readouterr().err


SHORT = ["--steps", "1", "--batch", "2", "--seeds", "1", "--evaluated", "2", "--arms", "baseline", "--quiet"]


def test_a_folder_is_gone_on_with_by_the_same_models_and_lengths_alone(tmp_path, capsys):
    run = ["train", *HOST, *SHORT, "--out", str(tmp_path), "--student-layers", "1"]
    assert main(run) == 0
    for change, name in (
        (["--student-layers", "2"], "student_layers"),
        (["--max-tokens", "64"], "max_tokens"),
        (["--student", str(model_dir())], "student"),
    ):
        assert main([*(run[:-2] if name == "student" else run), *change]) == 2
        assert name in capsys.readouterr().err
    settings = json.loads((tmp_path / "study.json").read_text())
    assert settings["teachers"] == [str(model_dir().resolve())]


def test_a_student_that_is_wanted_later_is_trained_again(tmp_path):
    run = ["train", *HOST, *SHORT, "--out", str(tmp_path), "--student-layers", "1"]
    assert main(run) == 0
    assert not (tmp_path / "baseline").exists()
    assert main([*run, "--save-students"]) == 0
    assert (tmp_path / "baseline" / "model.safetensors").is_file()


def test_a_configuration_that_does_not_fit_is_said_before_a_folder_is_made(tmp_path, capsys):
    config = tmp_path / "distill.yaml"
    config.write_text("cka_layers: [99]\n")
    options = [*SHORT[:-3], "--arms", "baseline,attention-cka", "--config", str(config), "--out", str(tmp_path / "out")]
    assert main(["train", *HOST, *options]) == 2
    assert "layers [99]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_diagnosis_is_repeated_to_the_bit_with_projections(tmp_path):
    random_model("qwen2", layers=2, hidden=32).save_pretrained(tmp_path / "student")
    random_model("qwen2", layers=4, hidden=64).save_pretrained(tmp_path / "teacher")
    found = []
    for name in ("student", "teacher"):
        byte_level_tokenizer().save_pretrained(tmp_path / name)
    models = ["--teacher", str(tmp_path / "teacher"), "--student", str(tmp_path / "student"), "--max-tokens", "32"]
    for at in range(2):
        path = tmp_path / f"{at}.json"
        assert main(["diagnose", *HOST, *models, "--samples", "1", "--json", str(path), "--quiet"]) == 0
        found.append(path.read_text())
    assert found[0] == found[1]


@pytest.mark.parametrize("command", ["diagnose", "train"])
def test_code_that_a_checkpoint_brings_is_run_only_when_told(command, monkeypatch):
    told = []

    def load(*given):
        told.append(given[-1])
        raise UsageError("seen")

    monkeypatch.setattr(cli, "load_models", load)
    assert main([command, *HOST]) == main([command, *HOST, "--trust-remote-code"]) == 2
    assert told == [False, True]


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["diagnose", "--teacher", "nowhere"], "nowhere", 2),
        (["diagnose", "--student-layers", "12"], "choose 1 to 11", 2),
        (["diagnose", "--config", "none.yaml"], "cannot read none.yaml", 2),
        (["diagnose", "--json", "no/where.json"], "cannot write no/where.json", 2),
        (["train", "--eval-data", "rows.jsonl"], "without --data", 2),
        (["train", "--save-students"], "needs --out DIR", 2),
        (["diagnose", "--backend", "tpu"], "tpu", 2),
        (["train", "--out", "x", "--arms", "kd"], "arms 'kd'", 2),
        (["train", "--out", "x", "--teacher", "nowhere", "--data", "rows.jsonl"], "nowhere", 2),
        (["train", "--out", "x", "--student-layers", "30"], "choose 1 to 11", 2),
        (["train", "--out", "x", "--rate", "1.5"], "--rate", 2),
        (["train", "--out", "x", "--max-tokens", "4096"], "has 2048 positions; give 2048 or less", 2),
        (["diagnose", "--max-tokens", "4096"], "has 2048 positions; give 2048 or less", 2),
        (
            ["train", "--out", "x", "--batch", "1", "--arms", "baseline,shuffled"],
            "a batch of 1 has no other example",
            2,
        ),
        (["train", "--out", "x", "--dtype", "float16"], "use --dtype float32 or bfloat16", 2),
    ],
)
def test_what_is_wrong_is_one_line(arguments, words, code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend = [] if "--backend" in arguments else HOST
    assert main([*arguments, *backend]) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
