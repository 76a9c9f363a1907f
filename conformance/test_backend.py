"""The cases as tests; collected by `pytest --pyargs conformance --backend NAME` and by nothing else."""

from __future__ import annotations

import pytest

from conformance.case import Case
from conformance.pytest_plugin import record
from conformance.runner import run_case
from hal.backend import TorchBackend


def test_backend(case: Case, conformance_backend: TorchBackend, request: pytest.FixtureRequest) -> None:
    """The case holds on the backend, or its failure is declared."""
    result = run_case(conformance_backend, case)
    record(request.config, result)
    if result.verdict == "unsupported":
        pytest.skip(result.message)
    if result.verdict == "known":
        pytest.xfail(result.message)
    if result.verdict == "fail":
        pytest.fail(f"{case.purpose}: {result.message}", pytrace=False)
