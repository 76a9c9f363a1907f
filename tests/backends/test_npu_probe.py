"""The NPU probe's reasons, with the wheel, CANN and its devices imitated; tests/npu has the real wheel."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from types import SimpleNamespace

import pytest
import torch

import hal
from backends import npu_probe
from backends.npu import Npu


class Cann:
    """Stands in for libascendcl.so: `code` and `count` are what aclrtGetDeviceCount gives."""

    def __init__(self, count=1, code=0):
        self.count, self.code = count, code

    def aclrtGetDeviceCount(self, pointer):
        pointer._obj.value = self.count
        return self.code


ONE_DEVICE = Cann()


@pytest.fixture
def machine(monkeypatch):
    """A machine with a wheel of the right release, CANN and one device; arguments take some of it away."""

    def pretend(wheel=torch.__version__, cann=ONE_DEVICE, accelerator=None):
        spec = SimpleNamespace() if wheel is not None else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(importlib.metadata, "version", lambda name: wheel)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: accelerator)
        monkeypatch.setattr(npu_probe.ctypes, "CDLL", lambda name: cann if cann is not None else missing(name))
        for name in (npu_probe.VISIBLE, npu_probe.HOME, npu_probe.OPERATORS):
            monkeypatch.delenv(name, raising=False)

    return pretend


def missing(name):
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")


def test_without_the_wheel(machine):
    machine(wheel=None)
    assert npu_probe.probe().reason == (
        "torch_npu is not installed: pip install 'srdd-hal[npu]' in the release that matches torch"
    )


@pytest.mark.parametrize("wheel", ["2.7.1", "2.7.1.post4"])
def test_a_wheel_of_another_release(machine, wheel):
    machine(wheel=wheel)
    assert npu_probe.probe().reason == (
        f"torch_npu {wheel} is built for torch 2.7.1 and torch is {torch.__version__}: "
        "install the two in the same release"
    )


def test_a_post_release_of_the_right_release_is_accepted(machine):
    release = torch.__version__.partition("+")[0]
    machine(wheel=f"{release}.post7")
    assert npu_probe.probe().available


def test_a_build_without_metadata_is_accepted(machine, monkeypatch):
    machine()

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert npu_probe.probe().available


def test_another_accelerator_in_the_process(machine):
    machine(accelerator=torch.device("cuda"))
    assert npu_probe.probe().reason.startswith("torch already serves the accelerator 'cuda'")
    assert "ERR00007" in npu_probe.probe().reason


def test_torch_npu_already_imported_is_no_conflict(machine):
    machine(accelerator=SimpleNamespace(type="npu"))
    assert npu_probe.probe().available


def test_without_cann(machine):
    machine(cann=None)
    found = npu_probe.probe()
    assert found.reason.startswith("torch_npu is installed but CANN is not loadable (libascendcl.so: cannot open")
    assert "source set_env.sh" in found.reason


def test_without_devices(machine):
    machine(cann=Cann(count=0))
    assert npu_probe.probe() == hal.Probe(False, "CANN sees no NPU: check the driver and the devices with npu-smi info")


def test_a_driver_that_fails(machine):
    machine(cann=Cann(code=507899))
    assert npu_probe.probe().reason.startswith("CANN cannot count NPUs (aclrtGetDeviceCount returned 507899)")


def test_a_list_that_hides_every_device(machine, monkeypatch):
    machine(cann=Cann(count=0))
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1,0")
    assert npu_probe.probe().reason == (
        "CANN sees no NPU with ASCEND_RT_VISIBLE_DEVICES='1,0': unset it, or list existing ids in ascending order"
    )


def test_a_toolkit_without_its_operators(machine, monkeypatch, tmp_path):
    machine()
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert "ASCEND_OPP_PATH is not: source set_env.sh" in npu_probe.probe().reason


@pytest.mark.parametrize("absent", ["runtime", "compiler", "opp"])
def test_a_toolkit_without_a_folder(machine, monkeypatch, tmp_path, absent):
    machine()
    for folder in {"runtime", "compiler", "opp"} - {absent}:
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path / "opp"))
    assert f"lacks '{tmp_path / absent}'" in npu_probe.probe().reason
    (tmp_path / absent).mkdir()
    assert npu_probe.probe().available


def test_devices(machine):
    machine(cann=Cann(count=8))
    assert Npu.probe() == hal.Probe(True, "8 NPU(s), all visible", 8)


def test_a_device_that_does_not_exist(machine):
    machine(cann=Cann(count=2))
    with pytest.raises(hal.BackendUnavailableError, match=r"device 5 of backend 'npu' does not exist.* 0 to 1"):
        Npu.at("npu:5")


@pytest.mark.parametrize("device", ["cuda:0", "npu:x", "gpu"])
def test_a_device_of_another_kind(machine, device):
    machine()
    with pytest.raises(hal.UsageError, match=f"device '{device}'"):
        Npu.at(device)
