"""The cases that the probe tells apart, each in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import hal

MAIN_PYTHON = Path(__file__).parents[2] / ".venv" / "bin" / "python"
NO_CANN = {"LD_LIBRARY_PATH": None, "NPU_SIM_LIBRARY": None, "ASCEND_HOME_PATH": None}

PROBE = """
import hal, sys
info = {info.name: info for info in hal.list_backends()}["npu"]
print(info.available, info.devices, info.reason, sep="|")
print("torch_npu" in sys.modules)
import torch
print(torch.ones(2).sum().item())
"""


def probe(run_python, **variables):
    outcome = run_python(PROBE, **variables)
    assert outcome.returncode == 0, outcome.stderr
    verdict, imported, torch_works = outcome.stdout.splitlines()
    assert imported == "False", "probing must not import torch_npu"
    assert torch_works == "2.0"
    available, devices, reason = verdict.split("|")
    return available == "True", int(devices), reason


@pytest.mark.skipif(not MAIN_PYTHON.exists(), reason="needs the main environment .venv beside this one")
def test_without_the_wheel(run_python):
    available, _, reason = probe(run_python, python=str(MAIN_PYTHON), PYTHONPATH=None)
    assert not available
    assert reason.startswith("torch_npu is not installed: pip install")


def test_with_the_wheel_and_without_cann(run_python):
    # With autoload on, where a plain `import torch` fails: hal comes first and keeps it from failing.
    available, _, reason = probe(run_python, TORCH_DEVICE_BACKEND_AUTOLOAD=None, **NO_CANN)
    assert not available
    assert "CANN is not loadable (libascendcl.so: cannot open shared object file" in reason
    assert "set_env.sh" in reason


def test_importing_torch_first_without_cann_fails_as_the_probe_assumes(run_python):
    outcome = run_python("import torch", TORCH_DEVICE_BACKEND_AUTOLOAD=None, **NO_CANN)
    assert outcome.returncode != 0
    assert "Failed to load the backend extension: torch_npu" in outcome.stderr


def test_with_cann_and_no_device(run_python):
    available, devices, reason = probe(run_python, NPU_SIM_DEVICES="0")
    assert (available, devices) == (False, 0)
    assert reason == "CANN sees no NPU: check the driver and the devices with npu-smi info"


def test_with_a_device(run_python):
    assert probe(run_python, NPU_SIM_DEVICES="2") == (True, 2, "2 NPU(s), all visible")


@pytest.mark.parametrize("visible", ["0", "0,7"])
def test_visible_devices_are_named(npu, monkeypatch, visible):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    assert npu.probe() == hal.Probe(True, f"1 NPU(s), ASCEND_RT_VISIBLE_DEVICES='{visible}'", 1)


@pytest.mark.parametrize("visible", ["", "1,0", "7"])
def test_a_list_that_hides_every_device_is_named(npu, monkeypatch, visible):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    found = npu.probe()
    assert not found.available
    assert found.reason.startswith(f"CANN sees no NPU with ASCEND_RT_VISIBLE_DEVICES='{visible}'")
    assert "ascending order" in found.reason


def test_a_toolkit_without_operators_is_named(npu, monkeypatch):
    monkeypatch.delenv("ASCEND_OPP_PATH")
    assert "ASCEND_OPP_PATH is not: source set_env.sh" in npu.probe().reason


def test_a_toolkit_without_a_folder_is_named(npu, monkeypatch, tmp_path):
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert f"lacks '{tmp_path / 'runtime'}'" in npu.probe().reason


def test_an_import_that_fails_is_reported_as_unavailable(run_python, tmp_path):
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text("raise Exception('toolkit\\nmissing')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import hal; hal.get_backend('npu')"
    error = run_python(code, python=sys.executable).stderr.splitlines()[-1]
    assert error.startswith("hal.errors.BackendUnavailableError: backend 'npu' is unavailable")
    assert "toolkit missing" in error


def test_loading_leaves_the_environment_and_standard_output_alone(run_python):
    code = (
        "import os, hal; hal.get_backend('npu'); import torch;"
        "print(torch.npu.is_available(), os.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD'))"
    )
    without_home = {"ASCEND_HOME_PATH": None, "TORCH_DEVICE_BACKEND_AUTOLOAD": None}
    assert run_python(code, **without_home).stdout == "True None\n"
