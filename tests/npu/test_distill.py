"""A student's losses are the same on the simulated npu as on the host, and it is trained there."""

from __future__ import annotations

import json

import pytest

from distill.cli import main


def test_a_diagnosis_is_the_hosts(tmp_path):
    found = {}
    for name in ("cpu-reference", "npu"):
        path = tmp_path / f"{name}.json"
        assert main(["diagnose", "--backend", name, "--samples", "2", "--json", str(path), "--quiet"]) == 0
        found[name] = json.loads(path.read_text())
    host, device = found["cpu-reference"], found["npu"]
    for name, scale in host["scales"].items():
        assert device["scales"][name]["mean"] == pytest.approx(scale["mean"], rel=1e-4), name
    assert device["advice"] == host["advice"]


def test_a_student_is_trained_on_it(tmp_path):
    options = ["--steps", "3", "--batch", "4", "--seeds", "1", "--evaluated", "8", "--arms", "attention-cka"]
    assert main(["train", "--backend", "npu", *options, "--out", str(tmp_path), "--quiet"]) == 0
    outcome = json.loads((tmp_path / "result.json").read_text())
    assert outcome["values"]["attention-cka"]["loss"][0] < outcome["values"]["untrained"]["loss"][0]
    first, last = outcome["losses"]["attention-cka"]["total"][0]
    assert last < first
