"""`pytest --pyargs conformance --backend NAME`, run as its user runs it, in a folder of the user's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_pytest(tmp_path):
    def run(*arguments):
        # Named beside the entry point, so that it also works in an environment installed before there was one.
        command = [sys.executable, "-m", "pytest", "-p", "conformance.pytest_plugin", "--pyargs", "conformance"]
        return subprocess.run(
            [*command, "-q", "-rxs", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_cases_are_tests_and_known_failures_expected_ones(run_pytest):
    chosen = "sweeps/silu or ties or gradients/layer_norm/float16/large"
    outcome = run_pytest("--backend", "cpu-reference", "--conformance-full", "-k", chosen)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "6 passed" in outcome.stdout
    assert "3 xfailed" in outcome.stdout
    assert "in the narrow dtype" in outcome.stdout


def test_no_backend_and_an_unavailable_one_end_with_the_documented_codes(run_pytest):
    outcome = run_pytest("-k", "hooks")
    assert outcome.returncode == 2
    assert "give the conformance tests a backend: --backend NAME" in outcome.stdout + outcome.stderr
    outcome = run_pytest("-k", "hooks", "--backend", "nothing")
    assert outcome.returncode == 2
    assert "unknown backend 'nothing'" in outcome.stdout + outcome.stderr
