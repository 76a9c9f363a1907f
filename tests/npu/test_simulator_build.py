"""Building the simulator and its environment: what is kept, and what is said when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = Path(__file__).parent / "environment.py"


@pytest.fixture
def build(monkeypatch, tmp_path):
    from simulator import build

    monkeypatch.setattr(build, "OUTPUT", tmp_path / "output")
    return build


def test_a_finished_build_is_found_without_a_compiler(monkeypatch):
    from simulator import build

    monkeypatch.setattr(build, "_compiler", lambda: pytest.fail("nothing is to be compiled"))
    assert str(build.build() / "libnpu_sim.so") == os.environ["NPU_SIM_LIBRARY"]


def test_a_missing_compiler_is_said_in_one_line(build, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "nonesuch")
    with pytest.raises(build.BuildError) as caught:
        build.build()
    assert str(caught.value) == (
        "no C++ compiler found (nonesuch, g++, clang++): install g++ or set CXX to the path of one"
    )


def test_a_failing_compiler_leaves_nothing_behind(build, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError, match=r"false failed on .*\(exit status 1\)"):
        build.build()
    assert list(build.OUTPUT.iterdir()) == []


def test_a_changed_source_is_another_build(build, monkeypatch, tmp_path):
    before = build._fingerprint()
    (tmp_path / "extra.cpp").write_text("int extra;")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "__file__", str(tmp_path / "extra.cpp"))
    assert build._fingerprint() != before


def environment(*arguments):
    command = [sys.executable, str(ENVIRONMENT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("arguments", [(), ("run",), ("setup", "now"), ("explode",)], ids=str)
def test_wrong_usage_shows_the_verbs(arguments):
    outcome = environment(*arguments)
    assert outcome.returncode == 2
    assert "environment.py setup" in outcome.stderr


def test_a_command_that_does_not_exist_is_named():
    outcome = environment("run", "nonesuch")
    assert outcome.returncode == 1
    assert outcome.stderr == (
        "npu environment: cannot run 'nonesuch' (No such file or directory): give a command on the PATH\n"
    )


def test_a_child_process_is_simulated_too(run_python):
    code = "import torch, torch_npu; print((torch.ones(2, device='npu') * 3).sum().item())"
    assert run_python(code).stdout == "6.0\n"
