"""What the backend answers about its device."""

from __future__ import annotations

import pytest
import torch

import hal

MIB = 1 << 20


def test_device_is_the_first_npu(npu):
    assert npu.device == torch.device("npu:0")
    assert npu.device_name() == "Ascend910B1"


@pytest.mark.parametrize("device", [0, "npu", "npu:0", "0"])
def test_a_device_is_accepted_in_every_form(npu, device):
    assert hal.get_backend("npu", device).device == npu.device
    assert hal.get_backend("npu", npu.device).device == npu.device


def test_another_device_type_is_refused(npu):
    with pytest.raises(hal.UsageError, match="'cuda:0' does not belong to backend 'npu'"):
        hal.get_backend("npu", "cuda:0")


def test_a_device_that_does_not_exist_is_refused(npu):
    with pytest.raises(hal.BackendUnavailableError, match="device 1 of backend 'npu' does not exist"):
        hal.get_backend("npu", "npu:1")


def test_auto_takes_the_npu(npu):
    assert hal.get_backend("auto").name == "npu"


def test_versions_name_the_whole_stack(npu):
    assert npu.versions() == {"torch": torch.__version__, "torch_npu": "2.13.0", "cann": "9.1.0"}


def test_collectives_are_hccl_as_the_vendor_registers_it(npu):
    assert npu.collective == "hccl"
    assert torch.distributed.get_default_backend_for_device("npu") == npu.collective


def test_memory_is_counted(npu):
    before = npu.memory()
    block = torch.empty(4 * MIB, dtype=torch.uint8, device=npu.device)
    during = npu.memory()
    # On this chip torch_npu pads each allocation by 32 bytes, which may cost one more unit of 512.
    assert 4 * MIB <= during.allocated - before.allocated <= 4 * MIB + 512
    assert during.peak >= during.allocated
    assert during.total == 8192 * MIB
    del block
    npu.reset_peak_memory()
    assert npu.memory().peak == npu.memory().allocated == before.allocated


def test_a_generator_repeats_its_stream(npu):
    first = torch.randn(8, device=npu.device, generator=npu.generator(3))
    second = torch.randn(8, device=npu.device, generator=npu.generator(3))
    other = torch.randn(8, device=npu.device, generator=npu.generator(4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_timer_measures_with_events(npu):
    factor = torch.ones(256, 256, device=npu.device)
    with npu.timer() as timer:
        assert timer.seconds != timer.seconds  # not a number until the block has ended
        factor @ factor
    assert 0 < timer.seconds < 60


def test_synchronize_returns(npu):
    npu.synchronize()


def test_float64_is_not_offered_because_the_device_narrows_it(npu):
    assert torch.float64 not in npu.dtypes
    wide = torch.full((1,), 1 / 3, dtype=torch.float64)
    assert wide.to(npu.device).float().to(torch.float64).dtype == torch.float32
    assert torch.ones(1, device=npu.device).double().dtype == torch.float32
