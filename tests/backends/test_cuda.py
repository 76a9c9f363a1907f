from __future__ import annotations

import os
import warnings

import pytest
import torch

import hal
from backends import cuda
from backends.cuda import Cuda

EXACT = hal.NumericMode()
REDUCED = hal.NumericMode(reduced_precision_matmul=True)


@pytest.fixture
def built(monkeypatch):
    """A torch that claims to be built with CUDA, on a machine whose driver opens and shows `count` devices."""

    def pretend(count, driver_error=None):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(cuda, "_driver_error", lambda: driver_error)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.fixture
def no_gpu():
    """The backend on a machine that may have no GPU: its switches are torch's and exist in every build."""
    return Cuda()


def test_a_cpu_build_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    found = Cuda.probe()
    assert not found.available
    assert found.reason == f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch"


def test_a_missing_driver_is_named(built):
    built(0, driver_error="libcuda.so.1: cannot open shared object file")
    found = Cuda.probe()
    assert not found.available
    assert found.reason.startswith("no NVIDIA driver (libcuda.so.1: cannot open shared object file): install one")


@pytest.mark.parametrize("hidden", ["", "-1", "0,0"])
def test_a_variable_that_hides_every_device_is_named(built, monkeypatch, hidden):
    built(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    found = Cuda.probe()
    assert not found.available
    assert found.reason.startswith(f"CUDA_VISIBLE_DEVICES='{hidden}' leaves no device visible: unset it")


def test_a_driver_without_devices_passes_on_what_torch_said(built, monkeypatch):
    built(0)

    def count():
        warnings.warn("Can't initialize NVML", stacklevel=1)
        return 0

    monkeypatch.setattr(torch.cuda, "device_count", count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = Cuda.probe()
    assert found.reason == "the driver reports no CUDA device (Can't initialize NVML): check nvidia-smi"


def test_devices_are_counted(built):
    built(4)
    assert Cuda.probe() == hal.Probe(True, "4 CUDA device(s), CUDA 13.0", 4)


def test_probing_creates_no_context(built):
    built(1)
    Cuda.probe()
    assert not torch.cuda.is_initialized()


def test_the_driver_is_looked_for_under_its_own_name(monkeypatch):
    opened = []

    def refuse(name):
        opened.append(name)
        raise OSError(f"{name}: not here")

    monkeypatch.setattr(cuda.ctypes, "CDLL", refuse)
    monkeypatch.setattr(torch.version, "hip", None)
    assert cuda._driver_error() == f"{opened[0]}: not here"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert cuda._driver_error() is None


def test_an_unavailable_device_says_why(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(hal.BackendUnavailableError, match=r"backend 'cuda' is unavailable: torch .* without CUDA"):
        hal.get_backend("cuda")


def test_exact_mode_pins_every_float32_setting(no_gpu):
    with no_gpu.numeric_mode(EXACT):
        switches = no_gpu.numeric_switches()
        assert torch.are_deterministic_algorithms_enabled()
    assert switches["cudnn.allow_tf32"] == "False"
    assert switches["float32_matmul_precision"] == "highest"
    assert {value for name, value in switches.items() if name.endswith(".fp32_precision")} == {"ieee"}
    assert {value for name, value in switches.items() if "reduced_precision_reduction" in name} == {"False"}
    assert (switches["cudnn.deterministic"], switches["cudnn.benchmark"]) == ("True", "False")
    assert switches["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_reduced_mode_allows_tf32(no_gpu):
    with no_gpu.numeric_mode(REDUCED):
        switches = no_gpu.numeric_switches()
    assert switches["cudnn.allow_tf32"] == "True"
    assert {value for name, value in switches.items() if name.endswith(".fp32_precision")} == {"tf32"}


def test_a_mode_without_determinism_leaves_cudnn_and_cublas_alone(no_gpu, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with no_gpu.numeric_mode(hal.NumericMode(deterministic=False)):
        assert no_gpu.numeric_switches()["CUBLAS_WORKSPACE_CONFIG"] == "unset"


@pytest.mark.parametrize(("before", "within"), [(":16:8", ":16:8"), (":2:2", ":4096:8")])
def test_a_users_cublas_workspace_is_kept_where_it_is_deterministic(no_gpu, monkeypatch, before, within):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", before)
    with no_gpu.numeric_mode(EXACT):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == within
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == before


def fail_within(backend, mode, switches):
    with backend.numeric_mode(mode):
        switches.update(backend.numeric_switches())
        raise ZeroDivisionError


@pytest.mark.parametrize("mode", [EXACT, REDUCED], ids=["exact", "reduced"])
def test_everything_is_restored_after_an_exception(no_gpu, mode):
    before, within = no_gpu.numeric_switches(), {}
    with pytest.raises(ZeroDivisionError):
        fail_within(no_gpu, mode, within)
    assert no_gpu.numeric_switches() == before
    assert within != before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_a_users_setting_under_the_newer_names_survives(no_gpu):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision, conv.fp32_precision = "tf32", "ieee"  # torch now refuses to read the older names
    try:
        with no_gpu.numeric_mode(EXACT):
            assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
        assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "ieee")
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def test_the_surface():
    assert (Cuda.collective, Cuda.status) == ("nccl", "beta")
    assert torch.float64 in Cuda.dtypes


@pytest.fixture(scope="module")
def gpu():
    if not Cuda.probe().available:
        pytest.skip(Cuda.probe().reason)
    return hal.get_backend("cuda")


@pytest.mark.gpu
def test_a_gpu_answers_for_itself(gpu):
    assert gpu.device.type == "cuda"
    assert gpu.device_name()
    assert set(gpu.versions()) == {"torch", "cuda", "cudnn", "compute_capability"}
    assert 0 <= gpu.memory().allocated <= gpu.memory().total


@pytest.mark.gpu
def test_tf32_is_off_in_exact_mode_and_on_in_reduced_mode(gpu):
    factors = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0))
    expected = factors[0].double() @ factors[1].double()
    errors = []
    for mode in (EXACT, REDUCED):
        with gpu.numeric_mode(mode):
            result = (factors[0].to(gpu.device) @ factors[1].to(gpu.device)).cpu()
        errors.append(((result - expected).abs().max() / expected.abs().max()).item())
    assert errors[0] < 1e-5 < errors[1]


@pytest.mark.gpu
def test_the_timer_counts_queued_work(gpu):
    factor = torch.ones(2048, 2048, device=gpu.device)
    with gpu.timer() as timer:
        for _ in range(10):
            factor @ factor
    assert 0 < timer.seconds < 60
