"""Model A against Model B: one command, every figure of the comparison in one table."""

from __future__ import annotations

import json

import pytest

from aqn.cli import main

MEASURES = {
    "accuracy with the fault",
    "accuracy without the fault",
    "accuracy with the fault and 10 % noise",
    "accuracy with the fault, other kinds of question",
    "seconds a step",
    "time a step over the baseline's",
    "share of dead values that noise carried through",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_table_is_complete(tmp_path):
    options = "--method supervised --steps 2 --seeds 2 --evaluated 8 --prompts 2 --backend cpu-reference --quiet"
    assert main(["model-ab", "--out", str(tmp_path / "ab"), *options.split()]) == 0
    result = json.loads((tmp_path / "ab" / "model_ab.json").read_text(encoding="utf-8"))
    for model in ("targeted", "epoch_aware"):
        assert {cell["measure"] for cell in result["cells"] if cell["condition"] == model} == MEASURES
    assert all(len(cell["values"]) == 2 for cell in result["cells"])
    rates = {c["condition"]: c["summary"]["mean"] for c in result["cells"] if c["measure"].startswith("share of dead")}
    assert rates["baseline"] == 0 < rates["targeted"]
    assert {"targeted", "epoch_aware"} in [{entry["first"], entry["second"]} for entry in result["comparisons"]]


@pytest.mark.parametrize(
    "options", [["--method", "dreaming"], ["--mode", "some_ops"], ["--threshold", "0"], ["--steps", "5"]]
)
def test_what_cannot_be_compared_is_refused_in_one_line(options, tmp_path, capsys):
    assert main(["model-ab", "--out", str(tmp_path / "ab"), *options]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "ab").exists()
