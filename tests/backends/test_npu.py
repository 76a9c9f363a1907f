"""The NPU backend where there is no NPU: what it declares, how loading fails, which settings it would pin."""

from __future__ import annotations

import importlib
import os
from enum import IntEnum
from types import SimpleNamespace

import pytest
import torch

import hal
from backends import npu, npu_numerics, npu_ops
from backends.npu import Npu
from hal.ops import CATALOGUE


class CubeMode(IntEnum):
    KEEP_DTYPE = 0
    USE_HF32 = 3
    USE_FP32_ADD = 4


@pytest.fixture
def vendor(monkeypatch):
    """Stands in for torch.npu: the settings that the backend reads and writes."""
    for name in npu_numerics.REPORTED_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    levels = [0]
    return SimpleNamespace(
        matmul=SimpleNamespace(allow_hf32=False, cube_math_type=None),
        conv=SimpleNamespace(allow_hf32=True),
        utils=SimpleNamespace(is_support_inf_nan=lambda: True),
        levels=levels,
        set_deterministic_level=levels.append,
        _get_deterministic_level=lambda: levels[-1],
        get_device_name=lambda: "Ascend910A",
    )


def test_what_it_declares():
    assert (Npu.collective, Npu.status) == ("hccl", "experimental")
    assert torch.float64 not in Npu.dtypes
    assert set(Npu.known_failures) <= set(CATALOGUE)
    assert set(npu_ops.fused_operators()) <= set(CATALOGUE)


def test_an_import_that_fails_is_unavailable_in_one_line(monkeypatch):
    def refuse(name):
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # as a failed import of torch_npu leaves it
        raise Exception("no toolkit\n[ERROR] PTA")  # noqa: TRY002 -- what torch_npu itself raises

    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD", raising=False)
    monkeypatch.delenv(npu_numerics.FALLBACK, raising=False)
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(hal.BackendUnavailableError, match=r"does not import \(no toolkit \[ERROR\] PTA\)"):
        Npu.load()
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD" not in os.environ


def test_what_the_import_prints_goes_to_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(npu, "_import_torch_npu", lambda: print("advice"))  # noqa: T201 -- torch_npu prints
    Npu.load()
    assert capsys.readouterr() == ("", "advice\n")


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0"), ("1", "1")])
def test_loading_forbids_cpu_fallback_unless_the_user_decided(monkeypatch, before, after):
    monkeypatch.setenv(npu_numerics.FALLBACK, "")
    monkeypatch.delenv(npu_numerics.FALLBACK)
    if before is not None:
        monkeypatch.setenv(npu_numerics.FALLBACK, before)
    monkeypatch.setattr(npu, "_import_torch_npu", lambda: None)
    Npu.load()
    assert os.environ[npu_numerics.FALLBACK] == after


@pytest.mark.parametrize("reduced", [False, True])
def test_hf32_follows_the_mode(vendor, reduced):
    with npu_numerics.pinned_precision(vendor, hal.NumericMode(reduced_precision_matmul=reduced)):
        assert (vendor.matmul.allow_hf32, vendor.conv.allow_hf32) == (reduced, reduced)
    assert (vendor.matmul.allow_hf32, vendor.conv.allow_hf32) == (False, True)


@pytest.mark.parametrize(
    ("mode", "within"),
    [(CubeMode.USE_HF32, CubeMode.KEEP_DTYPE), (CubeMode.USE_FP32_ADD, CubeMode.USE_FP32_ADD), (None, None)],
    ids=str,
)
def test_a_cube_mode_that_loses_bits_is_put_aside(vendor, mode, within):
    vendor.matmul.cube_math_type = mode
    with npu_numerics.pinned_precision(vendor, hal.NumericMode()):
        assert vendor.matmul.cube_math_type == within
    assert vendor.matmul.cube_math_type == mode


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_level_follows_the_flag_and_returns(vendor, deterministic):
    vendor.levels.append(2)
    with npu_numerics.pinned_level(vendor, npu_numerics.deterministic_level(vendor), deterministic):
        assert vendor.levels[-1] == int(deterministic)
    assert vendor.levels[-1] == 2


def test_a_torch_npu_without_levels_is_left_alone():
    older = SimpleNamespace()
    assert npu_numerics.deterministic_level(older) is None
    with npu_numerics.pinned_level(older, None, True):
        pass


def test_determinism_reaches_the_environment_only_for_the_block(vendor):
    with npu_numerics.pinned_precision(vendor, hal.NumericMode()):
        assert os.environ["CLOSE_MATMUL_K_SHIFT"] == "1"
    assert "CLOSE_MATMUL_K_SHIFT" not in os.environ


@pytest.mark.parametrize("forced", [None, "1"])
def test_saturation_by_environment_is_refused(vendor, monkeypatch, forced):
    monkeypatch.setenv("INF_NAN_MODE_ENABLE", "0")
    if forced is not None:
        monkeypatch.setenv("INF_NAN_MODE_FORCE_DISABLE", forced)
    with pytest.raises(hal.UsageError, match=r"INF_NAN_MODE_ENABLE='0'.*unset both before Python starts"):
        npu_numerics.require_inf_nan(vendor)


def test_a_device_that_always_saturates_is_refused(vendor):
    vendor.utils.is_support_inf_nan = lambda: False
    with pytest.raises(hal.UsageError, match="'Ascend910A' saturates on overflow"):
        npu_numerics.require_inf_nan(vendor)


def test_every_switch_is_reported(vendor, monkeypatch):
    monkeypatch.setenv("HCCL_DETERMINISTIC", "true")
    switches = npu_numerics.current(vendor)
    assert switches["HCCL_DETERMINISTIC"] == "true"
    assert switches["CLOSE_MATMUL_K_SHIFT"] == "unset"
    assert switches["cube_math_type"] == "default"
    assert (switches["inf_nan_mode"], switches["deterministic_level"]) == ("True", "0")


def test_an_overflow_mode_that_torch_npu_refuses_is_reported_without_asking_it(vendor, monkeypatch):
    vendor.utils.is_support_inf_nan = lambda: 1 // 0
    monkeypatch.setenv("INF_NAN_MODE_ENABLE", "0")
    assert npu_numerics.current(vendor)["inf_nan_mode"] == "False"
