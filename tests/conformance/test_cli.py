"""The commands, their exit codes, and what bad input gets."""

from __future__ import annotations

import json

import pytest

from conformance.cli import main

FEW = ["--cases", "operators/silu/*/odd/normal", "--cases", "deadzone/ties/*"]
RUN = ["run", "--backend", "cpu-reference"]


@pytest.fixture
def conformance(capsys):
    """Run the command; returns exit code, standard output and error."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def file(conformance, tmp_path):
    assert conformance(*RUN, *FEW, "--json", tmp_path / "a.json")[0] == 0
    return tmp_path / "a.json"


def test_a_run_prints_a_table_and_the_verdict(conformance):
    code, out, _ = conformance(*RUN, *FEW)
    assert code == 0
    assert "operators" in out
    assert "VERDICT: pass (6 pass, 0 fail, 0 known, 0 unsupported)" in out


def test_quiet_prints_the_verdict_alone(conformance):
    assert conformance(*RUN, *FEW, "--quiet")[1].count("\n") == 1


def test_a_run_that_fails_exits_with_1_and_says_what_differs(conformance, monkeypatch):
    from backends.cpu_reference import CpuReference

    monkeypatch.setattr(CpuReference, "known_failures", {"sweeps/nothing/*": "misspelt", "silu": "mended"})
    code, out, _ = conformance(*RUN, *FEW, "--cases", "gradients/layer_norm/float16/large/normal")
    assert code == 1
    assert "fails: gradients/layer_norm/float16/large/normal: error in units of what rounding explains" in out
    assert "stale: silu: passed in every case that ran" in out
    assert "unmatched: sweeps/nothing/*: names no case" in out


def test_seeds_and_selection_are_in_the_file(conformance, tmp_path):
    conformance(*RUN, *FEW, "--seeds", 4, "--json", tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    assert (document["seeds"], document["selection"]) == (4, "chosen")
    assert len(document["cases"][0]["inputs"]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "standard", ["bound", "ulp", "ascend-single", "mixed-2026", "ascend-dual-l0", "ascend-dual-l2"]
)
def test_compare_agrees_with_0(conformance, file, standard):
    code, out, _ = conformance("compare", file, file, "--standard", standard)
    assert code == 0
    assert "VERDICT: agree (6 agree" in out


def test_compare_disagrees_with_1_and_names_the_case(conformance, file, tmp_path):
    document = json.loads(file.read_text())
    worst = document["cases"][0]["rows"][0]
    worst["excess"], worst["example"] = 7.0, "element [0]: got 1, expected 2"
    (tmp_path / "b.json").write_text(json.dumps(document))
    code, out, _ = conformance("compare", file, tmp_path / "b.json")
    assert code == 1
    assert f"disagree: {document['cases'][0]['case']}: error in units of what rounding explains 7, limit 1" in out


def test_the_list_of_rechecks_is_what_run_takes(conformance, file, tmp_path):
    document = json.loads(file.read_text())
    document["cases"][0]["rows"][0]["errors"]["mare"] = 1.0
    (tmp_path / "b.json").write_text(json.dumps(document))
    waiting = tmp_path / "recheck.txt"
    compare = ["compare", file, tmp_path / "b.json", "--standard", "ascend-dual-l1"]
    code, out, _ = conformance(*compare, "--recheck-list", waiting)
    assert code == 1
    assert "note: 1 cases want the recheck" in out
    assert waiting.read_text() == document["cases"][0]["case"] + "\n"
    conformance(*RUN, "--cases", f"@{waiting}", "--seeds", 200, "--json", tmp_path / "c.json")
    code, out, _ = conformance(*compare, "--recheck", tmp_path / "c.json", "--recheck", tmp_path / "c.json")
    assert code == 0


def test_table_writes_markdown_and_html(conformance, file, tmp_path):
    outputs = ["--markdown", tmp_path / "t.md", "--html", tmp_path / "t.html", "--note", "Here <it> is simulated."]
    assert conformance("table", file, *outputs)[0] == 0
    assert "| silu | bfloat16 | cpu-reference | pass |" in (tmp_path / "t.md").read_text()
    assert "\nHere <it> is simulated.\n" in (tmp_path / "t.md").read_text()
    page = (tmp_path / "t.html").read_text()
    assert "<td>silu</td>" in page
    assert "Here &lt;it&gt; is simulated." in page
    assert "http" not in page.replace("<!doctype html>", "")


def test_table_without_a_file_prints_markdown(conformance, file):
    code, out, _ = conformance("table", file)
    assert code == 0
    assert out.startswith("# Conformance\n")


def test_list_prints_names_and_purposes(conformance):
    code, out, _ = conformance("list", "--quick")
    assert code == 0
    assert "differences/11-targets\ta target out of range is refused\n" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--backend", "gpu9"], 2, "unknown backend 'gpu9'; known: cpu-reference"),
        (["run", "--backend", "npu"], 3, "backend 'npu' is unavailable"),
        ([*RUN, "--cases", "nothing/*"], 2, "no case is named 'nothing/*'"),
        ([*RUN, "--cases", "@/nowhere"], 2, "cannot read the list of cases /nowhere"),
        ([*RUN, "--quick", "--json", "/nowhere/a.json"], 2, "cannot write /nowhere/a.json"),
        ([*RUN, "--seeds", "0"], 2, "Invalid value for '--seeds'"),
        (["compare", "/nowhere/a.json", "/nowhere/b.json"], 2, "cannot read results /nowhere/a.json"),
        (["compare", "FILE", "FILE", "--standard", "ulps"], 2, "unknown standard 'ulps'"),
        (["compare", "FILE", "FILE", "--recheck", "FILE"], 2, "--recheck was given 1 times"),
        (["table", "FILE", "--html", "/nowhere/t.html"], 2, "cannot write /nowhere/t.html"),
        (["table", "FILE", "--html", "x.html", "--markdown", "x.html"], 2, "are the same file"),
        (["conform"], 2, "No such command 'conform'"),
    ],
)
def test_bad_input_gets_one_line(conformance, file, arguments, code, message):
    found, out, err = conformance(*(str(file) if word == "FILE" else word for word in arguments))
    assert found == code
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
