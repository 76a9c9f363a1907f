"""A device extension that cannot be loaded breaks `import torch`, and must not break `import hal`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "TORCH_DEVICE_BACKEND_AUTOLOAD"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A search path with an installed extension for torch that raises when torch loads it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "broken_extension.py").write_text("raise RuntimeError('the vendor library is missing')\n")
    info = folder / "broken_extension-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-extension\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nbroken = broken_extension:_autoload\n")
    return folder


def run(site: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_extension_does_break_torch(site):
    result = run(site, "import torch")
    assert result.returncode != 0
    assert "Failed to load the backend extension: broken" in result.stderr


def test_hal_can_be_imported_and_used_and_leaves_the_variable_unset(site):
    code = f"""
import os, hal, torch
assert {VARIABLE!r} not in os.environ
assert hal.get_backend("cpu-reference").ops is not None
assert [info.status for info in hal.list_backends()].count("broken") == 0
print(torch.ones(2).sum().item())
"""
    result = run(site, code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "2.0\n"


def test_the_users_own_setting_is_kept_and_does_not_bring_the_extension_back(site):
    result = run(site, f"import os, hal; print(os.environ[{VARIABLE!r}])", **{VARIABLE: "1"})
    assert result.returncode == 0, result.stderr
    assert result.stdout == "1\n"
