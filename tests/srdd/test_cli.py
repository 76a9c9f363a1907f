import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from hal.registry import list_backends
from srdd.cli import main

QUICK = ["--level", "quick", "--backend", "cpu-reference"]
WORD_OPTIONS = ("backend", "device", "model", "dtype", "prompts", "level", "probes", "inject", "json", "html", "quiet")


@pytest.fixture
def srdd(checkpoint, capsys):
    """Run `srdd` on the small checkpoint; returns exit code, standard output and error."""

    def run(*arguments, model=checkpoint):
        code = main([*map(str, arguments), *(["--model", str(model)] if model else [])])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(srdd):
    """Run, and expect exit code 2 or another and one line on standard error, which is returned."""

    def run(*arguments, code=2, **options):
        found, out, err = srdd(*arguments, **options)
        assert found == code, err
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err

    return run


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def test_a_healthy_model_exits_with_0(srdd):
    code, out, err = srdd(*QUICK)
    assert code == 0
    assert "VERDICT: healthy" in out
    assert err == ""


@pytest.mark.parametrize("kind", ["dead_zone", "saturation", "bias", "noise", "spike"])
def test_a_fault_exits_with_1_and_is_named(srdd, kind):
    code, out, _ = srdd("scan", *QUICK, "--inject", f"{kind}@2", "--quiet")
    assert code == 1
    assert out.strip() == f"faulty: layer 2, model.layers.2, {kind}"


def test_several_faults_can_be_injected(srdd):
    code, out, _ = srdd(*QUICK, "--inject", "bias@0:magnitude=0.5", "--inject", "noise@3:sparsity=0.5")
    assert code == 1
    assert "2. layer" in out
    assert re.search(r"layer 0, model.layers.0: bias", out)
    assert re.search(r"layer 3, model.layers.3: noise", out)


def test_quiet_prints_one_line(srdd):
    assert srdd(*QUICK, "--quiet") == (0, "healthy\n", "")


def test_the_full_level_is_the_default_and_names_the_operator(srdd):
    code, out, _ = srdd("--backend", "cpu-reference", "--inject", "bias@1:site=mlp.down_proj")
    assert code == 1
    assert "level full" in out
    assert "layer 1, model.layers.1.mlp.down_proj" in out


def test_prompts_dtype_probes_and_device_are_taken(srdd, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "How many rolls are there in all?"}\n')
    options = ["--prompts", prompts, "--dtype", "bfloat16", "--probes", "instability,pass_through", "--device", "0"]
    code, out, _ = srdd(*QUICK, *options)
    assert code == 0
    assert "bfloat16" in out
    assert "32 tokens" in out


def test_rows_are_as_long_as_asked_for(srdd):
    code, out, err = srdd(*QUICK, "--tokens", 100, "--attention", "eager")
    assert code == 0, err
    assert "200 tokens" in out


def test_json_holds_the_report_and_report_shows_it_again(srdd, tmp_path, capsys):
    path = tmp_path / "report.json"
    code, out, _ = srdd(*QUICK, "--inject", "saturation@1", "--json", path)
    assert code == 1
    assert json.loads(path.read_text())["verdict"] == "faulty"
    assert list(tmp_path.iterdir()) == [path]
    for again in ([], ["--rediagnose"]):
        assert main(["report", str(path), *again]) == 1
        assert capsys.readouterr().out == out


def test_html_is_one_page_and_report_makes_it_again(srdd, tmp_path, capsys):
    page, saved, again = (tmp_path / name for name in ("a.html", "a.json", "b.html"))
    code, _, _ = srdd(*QUICK, "--inject", "saturation@1", "--html", page, "--json", saved)
    assert code == 1
    assert "Layer 1: saturation" in page.read_text()
    assert main(["report", str(saved), "--html", str(again), "--json", str(tmp_path / "b.json"), "--quiet"]) == 1
    capsys.readouterr()
    assert again.read_text() == page.read_text()
    assert (tmp_path / "b.json").read_text() == saved.read_text()


def test_report_can_write_over_the_file_it_read_with_the_present_verdict(srdd, tmp_path, capsys):
    path = tmp_path / "report.json"
    srdd(*QUICK, "--inject", "bias@1", "--json", path)
    good = path.read_text()
    path.write_text(json.dumps({**json.loads(good), "findings": [], "verdict": "healthy"}))
    assert main(["report", "--rediagnose", "--quiet", str(path), "--json", str(path)]) == 1
    capsys.readouterr()
    assert path.read_text() == good


def test_report_exits_with_0_for_a_healthy_one(srdd, tmp_path, capsys):
    srdd(*QUICK, "--json", tmp_path / "report.json")
    assert main(["report", "--quiet", str(tmp_path / "report.json")]) == 0
    assert capsys.readouterr().out == "healthy\n"


def test_rediagnosis_judges_by_the_present_rules(srdd, tmp_path, capsys):
    path = tmp_path / "report.json"
    srdd(*QUICK, "--inject", "bias@1", "--json", path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "findings": [], "verdict": "healthy"}))
    assert main(["report", "--quiet", str(path)]) == 0
    assert main(["report", "--quiet", "--rediagnose", str(path)]) == 1


# -- backends ---------------------------------------------------------------------------------------------


def test_an_unknown_backend_lists_the_known_ones_and_why_each_is_unavailable(refused):
    line = refused("--backend", "tpu")
    assert "unknown backend 'tpu'" in line
    for info in list_backends():
        assert info.name in line
        assert info.available or info.reason in line


@pytest.mark.parametrize(("name", "hint"), [("npu", "torch_npu"), ("cuda", "CUDA")])
def test_an_unavailable_backend_exits_with_3_and_says_what_to_do(refused, name, hint):
    info = next(info for info in list_backends() if info.name == name)
    if info.available:
        pytest.skip(f"{name} is available here")
    line = refused("--backend", name, code=3)
    assert f"backend '{name}' is unavailable: {info.reason}" in line
    assert hint in line
    assert re.search(r"install|check|use|choose|build|driver", line)


@pytest.mark.parametrize(("device", "code"), [("7", 3), ("cuda:0", 2), ("first", 2)])
def test_a_device_that_is_not_there_is_named(refused, device, code):
    assert device in refused("--backend", "cpu-reference", "--device", device, code=code)


# -- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inject", "bais@1"], "unknown fault kind 'bais': did you mean 'bias'?"),
        (["--inject", "bias"], "is not KIND@LAYER"),
        (["--inject", "bias@1:sparsity=0"], "sparsity 0.0 must be in (0, 1]"),
        (["--inject", "bias@4"], "the model has layers 0 to 3"),
        (["--inject", "bias@-1"], "is not KIND@LAYER"),
        (["--inject", "bias@1:site=mlp.dwn"], "no module 'model.layers.1.mlp.dwn'"),
        (["--inject", "bias@1:operator=conv"], "operator 'conv' cannot be hooked"),
        (["--inject", "bias@1:operator=gelu"], "bias@1 gelu never acted"),
        (["--inject", "bias@1:sparsity=0.001"], "hits none of them"),
        (["--dtype", "float8"], "unknown dtype 'float8': choose auto, float32"),
        (["--attention", "flash"], "unknown attention 'flash': transformers here has eager, flash_attention_2"),
        (["--attention", "flash_attention_2"], "FlashAttention2 has been toggled on, but it cannot be used"),
        (["--tokens", "129"], "rows of 129 tokens: Qwen2ForCausalLM takes 1 to 128"),
        (["--tokens", "0"], "--tokens"),
        (["--level", "deep"], "unknown level 'deep': choose one of quick, full"),
        (["--probes", "gain,kurtois"], "unknown probes kurtois: choose from instability"),
        (["--probes", ""], "unknown probes (none given)"),
        (["--bakend", "npu"], "--bakend"),
        (["--quiet=3"], "--quiet"),
    ],
    ids=str,
)
def test_a_bad_option_is_named(refused, arguments, message):
    assert message in refused(*QUICK[2:], *(["--level", "quick"] if "--level" not in arguments else []), *arguments)


def test_an_option_without_its_value_is_named(refused):
    assert "'--inject' requires an argument" in refused(*QUICK, "--inject", model=None)


def test_a_misspelt_verb_is_named(refused):
    line = refused("raport", "x.json", model=None)
    assert "raport" in line
    assert "report" in line.replace("raport", "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "holds no prompts"),
        ("bad.jsonl", '{"prompt": "a"}\nnot json\n', "bad.jsonl line 2 is not JSON"),
        ("bad.jsonl", '{"answer": "a"}\n', "bad.jsonl line 1 has no text"),
        ("a.csv", "a", "must end in .txt or .jsonl"),
    ],
)
def test_a_bad_prompts_file_is_named(refused, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    assert message in refused(*QUICK, "--prompts", tmp_path / name)


def test_a_missing_prompts_file_is_named(refused, tmp_path):
    assert "none.txt" in refused(*QUICK, "--prompts", tmp_path / "none.txt")


def test_prompts_without_a_tokenizer_are_refused(refused, copy, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    (tmp_path / "a.txt").write_text("text")
    assert "needs a tokenizer" in refused(*QUICK, "--prompts", tmp_path / "a.txt", model=copy)


def test_a_report_into_a_missing_directory_is_refused_before_the_scan(refused, tmp_path):
    path = tmp_path / "none" / "report.json"
    assert f"cannot write {path}" in refused(*QUICK, "--json", path, "--model", tmp_path / "no-model", model=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_no_output_is_written_when_one_cannot_be(refused, tmp_path, option):
    other = {"--html": "--json", "--json": "--html"}[option]
    path = tmp_path / "none" / "out"
    missing = ["--model", tmp_path / "no-model"]
    line = refused(*QUICK, option, path, other, tmp_path / "good", *missing, model=None)
    assert f"cannot write {path}" in line
    assert list(tmp_path.iterdir()) == []


def test_two_outputs_into_one_file_are_refused(refused, tmp_path):
    path = tmp_path / "out"
    assert "are the same file" in refused(*QUICK, "--html", path, "--json", path)


def test_nothing_is_written_when_the_input_is_bad(refused, tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    refused(*QUICK, "--inject", "bias@99", "--json", path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# -- checkpoints ------------------------------------------------------------------------------------------


def truncate(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def poison(directory):
    file = directory / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(weights, file, metadata={"format": "pt"})


def forget(directory):
    (directory / "model.safetensors").unlink()


def pickle_it(directory):
    forget(directory)
    torch.save({}, directory / "pytorch_model.bin")


def misdescribe(directory):
    config = directory / "config.json"
    config.write_text(config.read_text()[:-30])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.safetensors is truncated"),
        (poison, "'model.layers.1.mlp.up_proj.weight' in .* is not finite"),
        (forget, "has no model.safetensors"),
        (pickle_it, "pickled"),
        (misdescribe, "config.json in .* cannot be used"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(refused, copy, damage, message):
    damage(copy)
    assert re.search(message, refused(*QUICK, model=copy))


def test_a_missing_checkpoint_is_named(refused, tmp_path):
    assert "does not exist" in refused(*QUICK, model=tmp_path / "none")
    assert "has no config.json" in refused(*QUICK, model=tmp_path)


# -- saved reports ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": "srdd-report/0"}', "'srdd-report/0', this version reads 'srdd-report/1'"),
        ('{"schema": "srdd-report/1"}', "breaks schema srdd-report/1"),
        ('{"schema": "srdd-rep', "is not JSON"),
    ],
)
def test_a_report_that_cannot_be_read_is_named(refused, tmp_path, content, message):
    path = tmp_path / "report.json"
    path.write_text(content)
    assert message in refused("report", path, model=None)


def test_a_missing_report_is_named(refused, tmp_path):
    assert "cannot read report" in refused("report", tmp_path / "none.json", model=None)
    assert "Missing argument 'file'" in refused("report", model=None)


# -- help, and the real program ---------------------------------------------------------------------------


def test_help_lists_the_verbs_and_the_exit_codes(srdd):
    for flag in ("--help", "-h"):
        code, out, _ = srdd(flag, model=None)
        assert code == 0
        assert "scan" in out
        assert "report" in out
        assert "0 healthy, 1 fault found, 2 wrong usage or input, 3 backend unavailable" in " ".join(out.split())


@pytest.mark.parametrize("name", WORD_OPTIONS)
def test_every_option_is_explained(srdd, name):
    _, out, _ = srdd("scan", "--help", model=None)
    explained = re.search(rf"--{name}\b[^\n]*\s{{2,}}[A-Z]?\w+", out)
    assert explained, out


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "srdd", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_program_finds_an_injected_fault(checkpoint, tmp_path):
    path = tmp_path / "report.json"
    result = program(*QUICK, "--model", checkpoint, "--inject", "dead_zone@3", "--json", path)
    assert result.returncode == 1, result.stderr
    assert "layer 3, model.layers.3: dead_zone" in result.stdout
    assert result.stderr == ""
    assert json.loads(path.read_text())["findings"][0]["layer"] == 3


def test_the_program_fails_in_one_line(tmp_path):
    result = program("--model", tmp_path / "none", "--backend", "cpu-reference")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: model directory")
    assert result.stderr.count("\n") == 1
