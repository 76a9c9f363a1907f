"""The numeric mode drives torch_npu's real switches, and the simulated arithmetic obeys them."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn.functional import conv2d

import hal
from backends import npu_numerics

EXACT = hal.NumericMode()
REDUCED = hal.NumericMode(reduced_precision_matmul=True)


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 64, 64, generator=generator)


def product_on(device, factors):
    left, right = factors.to(device)
    return (left @ right).cpu()


def convolution_on(device, factors):
    image, kernel = factors[None, :1].to(device), factors[None, :1, :3, :3].to(device)
    return conv2d(image, kernel).cpu()


def fail_within(npu, mode, switches):
    with npu.numeric_mode(mode):
        switches.update(npu.numeric_switches())
        raise ZeroDivisionError


@pytest.mark.parametrize("compute", [product_on, convolution_on])
def test_exact_mode_agrees_with_the_host_bit_for_bit(npu, factors, compute):
    with npu.numeric_mode(EXACT):
        assert torch.equal(compute(npu.device, factors), compute("cpu", factors))


@pytest.mark.parametrize("compute", [product_on, convolution_on])
def test_reduced_mode_rounds_inputs_to_hf32(npu, factors, compute):
    with npu.numeric_mode(REDUCED):
        result = compute(npu.device, factors)
    exact = compute("cpu", factors)
    error = (result - exact).abs().max() / exact.abs().max()
    assert 2**-16 < error < 2**-10


def test_convolutions_lose_bits_unless_the_mode_pins_them(npu, factors):
    # torch_npu's default, and the reason for pinning.
    assert torch.npu.conv.allow_hf32
    assert not torch.equal(convolution_on(npu.device, factors), convolution_on("cpu", factors))


def test_hf32_keeps_eleven_bits(npu):
    from simulator import switches

    value = torch.tensor([1 + 2**-11, 1 + 2**-12, 1 + 3 * 2**-12, float("inf"), float("nan")])
    with npu.numeric_mode(REDUCED):
        assert switches.get("hf32_matmul")
    rounded = torch.ops.npu_sim.round_to_hf32(value)
    assert rounded[:4].tolist() == [1 + 2**-11, 1.0, 1 + 2**-10, float("inf")]
    assert rounded[4].isnan()


@pytest.mark.parametrize("mode", [EXACT, REDUCED, hal.NumericMode(deterministic=False)], ids=str)
def test_every_switch_is_restored_after_an_exception(npu, mode):
    before, inside = npu.numeric_switches(), {}
    with pytest.raises(ZeroDivisionError):
        fail_within(npu, mode, inside)
    assert npu.numeric_switches() == before
    assert inside != before


@pytest.mark.usefixtures("torch_flags")
@pytest.mark.parametrize("mode", [EXACT, hal.NumericMode(deterministic=False)], ids=str)
def test_a_users_deterministic_setting_survives(npu, mode):
    torch.use_deterministic_algorithms(True)
    before = npu.numeric_switches()
    assert before["deterministic_level"] == "1"
    with npu.numeric_mode(mode):
        assert npu.numeric_switches()["deterministic_level"] == str(int(mode.deterministic))
    assert npu.numeric_switches() == before


def test_modes_nest(npu):
    with npu.numeric_mode(REDUCED):
        with npu.numeric_mode(EXACT):
            assert npu.numeric_switches()["matmul.allow_hf32"] == "False"
        assert npu.numeric_switches()["matmul.allow_hf32"] == "True"


def test_deterministic_mode_sets_flag_level_and_environment(npu):
    with npu.numeric_mode(EXACT):
        switches = npu.numeric_switches()
        assert torch.are_deterministic_algorithms_enabled()
    assert switches["deterministic_level"] == "1"
    for name, value in npu_numerics.DETERMINISTIC_ENVIRONMENT.items():
        assert switches[name] == value
        assert name not in os.environ


def test_a_users_cube_mode_is_put_aside_and_back(npu, factors):
    from torch_npu.npu.npu_config import _CubeMathType

    torch.npu.matmul.cube_math_type = _CubeMathType.USE_HF32
    try:
        assert not torch.equal(product_on(npu.device, factors), product_on("cpu", factors))
        with npu.numeric_mode(EXACT):
            assert npu.numeric_switches()["cube_math_type"] == "KEEP_DTYPE"
            assert torch.equal(product_on(npu.device, factors), product_on("cpu", factors))
        assert npu.numeric_switches()["cube_math_type"] == "USE_HF32"
    finally:
        torch.npu.matmul.cube_math_type = _CubeMathType.KEEP_DTYPE


@pytest.mark.parametrize("forced", ["0", "1"])
def test_saturation_by_environment_is_refused(npu, monkeypatch, forced):
    monkeypatch.setenv("INF_NAN_MODE_ENABLE", "0")
    monkeypatch.setenv("INF_NAN_MODE_FORCE_DISABLE", forced)
    with pytest.raises(hal.UsageError, match=r"INF_NAN_MODE_ENABLE='0'.*unset both"), npu.numeric_mode(EXACT):
        pass


def test_saturation_by_environment_saturates_on_the_vendors_path(run_python):
    code = (
        "import torch, torch_npu; x = torch.tensor([12.0], dtype=torch.float16).npu();"
        "print(torch_npu.npu.utils.is_support_inf_nan(), x.exp().item(), (-x).sqrt().item())"
    )
    outcome = run_python(code, INF_NAN_MODE_ENABLE="0", INF_NAN_MODE_FORCE_DISABLE="1")
    assert outcome.stdout.split() == ["False", "65504.0", "0.0"], outcome.stderr
