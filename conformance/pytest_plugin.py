"""`pytest --pyargs conformance --backend NAME`: every case is a test.

pytest loads this module in every environment it is installed in, so nothing is imported before it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conformance.results import CaseResult
    from hal.backend import TorchBackend

_MODULE = "conformance.test_backend"
_RESULTS: pytest.StashKey[list[CaseResult]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `python -m conformance run` that have a meaning here."""
    group = parser.getgroup("conformance")
    group.addoption("--backend", default=None, help="Backend for the conformance tests, e.g. cpu-reference or npu.")
    group.addoption("--backend-device", default=None, help="Its device: an index, or for example npu:1.")
    group.addoption("--conformance-full", action="store_true", help="All cases instead of the quick run's.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case, named as the case."""
    if metafunc.module.__name__ != _MODULE or "case" not in metafunc.fixturenames:
        return
    from conformance.cases import choose

    cases = choose(quick=not metafunc.config.getoption("--conformance-full"))
    metafunc.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="session")
def conformance_backend(request: pytest.FixtureRequest) -> Any:
    """The backend under test, in its exact numeric mode."""
    from hal.backend import NumericMode
    from hal.errors import HalError
    from hal.registry import get_backend

    name = request.config.getoption("--backend")
    if name is None:
        pytest.exit("give the conformance tests a backend: --backend NAME (python -m hal lists them)", returncode=2)
    try:
        backend = get_backend(name, request.config.getoption("--backend-device"))
    except HalError as error:
        pytest.exit(str(error), returncode=error.exit_code)
    with backend.numeric_mode(NumericMode(deterministic=True)):
        yield backend


def record(config: pytest.Config, result: CaseResult) -> None:
    """Keep a result for the summary's report on declarations."""
    config.stash.setdefault(_RESULTS, []).append(result)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the declarations that nothing needed."""
    results = config.stash.get(_RESULTS, [])
    if not results:
        return
    from conformance.cases import all_cases
    from conformance.declarations import stale, unmatched
    from hal.registry import get_backend

    backend: TorchBackend = get_backend(config.getoption("--backend"), config.getoption("--backend-device"))
    for key in stale(backend.known_failures, results):
        terminalreporter.write_line(f"stale: known failure {key} of {backend.name} passed in every case that ran")
    for key in unmatched(backend.known_failures, all_cases()):
        terminalreporter.write_line(f"unmatched: known failure {key} of {backend.name} names no case")
