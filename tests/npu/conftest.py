"""Leaves this folder out elsewhere than in the npu environment, and gives its tests the backend and child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SIMULATED = "NPU_SIM_LIBRARY" in os.environ
REASON = "needs the npu environment: python tests/npu/environment.py test"

# Warnings that torch_npu's own code causes, with the place in it.
VENDOR_WARNINGS = (
    "ignore:TypedStorage is deprecated:UserWarning",  # utils/storage.py, on the first deepcopy of any tensor
)

Snippet = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.npu)
        item.add_marker(pytest.mark.filterwarnings(*VENDOR_WARNINGS))
    if ours and not SIMULATED:
        # One test stands for all in the summary: two hundred equal reasons would bury the others.
        ours[0].add_marker(pytest.mark.skip(reason=REASON))
        rest = set(ours[1:])
        items[:] = [item for item in items if item not in rest]
        config.hook.pytest_deselected(items=ours[1:])


@pytest.fixture(scope="session")
def npu():
    """The backend under test."""
    import hal

    return hal.get_backend("npu")


@pytest.fixture
def device(npu):
    """The device of the backend under test, for tests of torch_npu itself."""
    return npu.device


@pytest.fixture
def arithmetic(npu):
    """The context manager that turns switches of the simulated arithmetic on and off."""
    from simulator import switches

    return switches.arithmetic


@pytest.fixture
def torch_flags() -> Iterator[None]:
    """Puts torch's determinism flag back after the test."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def run_python() -> Snippet:
    """Run a snippet in a new process, with variables changed (None removes one); returns the process."""

    def run(code: str, python: str = sys.executable, **variables: str | None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **{name: value for name, value in variables.items() if value is not None}}
        for name, value in variables.items():
            if value is None:
                environment.pop(name, None)
        return subprocess.run(
            [python, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    return run
