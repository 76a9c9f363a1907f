"""Tensors stay on their device, two devices are told apart, and each has its own memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import embedding, linear

SAME_DEVICE = "Expected all tensors to be on the same device"


@pytest.mark.parametrize(
    "mix",
    [
        pytest.param(lambda npu, cpu: npu + cpu, id="add"),
        pytest.param(lambda npu, cpu: npu @ cpu, id="matmul"),
        pytest.param(linear, id="linear"),
        pytest.param(lambda npu, cpu: torch.cat((npu, cpu)), id="cat"),
        pytest.param(lambda npu, cpu: torch.where(npu > 0, npu, cpu), id="where"),
        pytest.param(lambda npu, cpu: embedding(cpu.long(), npu), id="embedding"),
        pytest.param(lambda npu, cpu: npu.add_(cpu), id="add_"),
    ],
)
def test_mixing_host_and_device_raises(device, mix):
    with pytest.raises(RuntimeError, match=SAME_DEVICE):
        mix(torch.ones(2, 2, device=device), torch.ones(2, 2))


def test_a_host_number_goes_with_any_device(device):
    assert (torch.ones(2, device=device) * torch.tensor(3.0)).tolist() == [3.0, 3.0]


def test_numpy_refuses_device_memory(device):
    with pytest.raises(TypeError, match="can't convert npu:0 device type tensor to numpy"):
        torch.ones(2, device=device).numpy()


def test_uninitialised_memory_is_poisoned(device):
    torch.npu.empty_cache()
    assert torch.empty(1 << 20, device=device).isnan().all()


def test_out_of_memory_is_torchs_own_error(device):
    with pytest.raises(torch.OutOfMemoryError, match="NPU out of memory"):
        torch.empty(1 << 36, device=device)


TWO_DEVICES = """
import hal
first, second = hal.get_backend("npu", 0), hal.get_backend("npu", "npu:1")
import torch
a, b = torch.ones(4, device=first.device), torch.ones(4, device=second.device)
print(second.device, b.device, (b + b).device, b.to(first.device).device)
try:
    a + b
except RuntimeError as error:
    print(str(error).split("!")[0])
big = torch.empty(40 << 20, dtype=torch.uint8, device=first.device)
print(first.memory().total >> 20, first.memory().allocated >> 20, second.memory().allocated >> 20)
try:
    torch.empty(40 << 20, dtype=torch.uint8, device=first.device)
except torch.OutOfMemoryError as error:
    print("first is full")
print(torch.empty(40 << 20, dtype=torch.uint8, device=second.device).device)
del big
torch.npu.empty_cache()
print(torch.empty(40 << 20, dtype=torch.uint8, device=first.device).device)
with second.timer() as timer:
    b @ b
print(timer.seconds > 0, torch.npu.current_device())
print(torch.rand(1, device=second.device, generator=second.generator(1)).device)
"""


def test_two_devices(run_python):
    outcome = run_python(TWO_DEVICES, NPU_SIM_DEVICES="2", NPU_SIM_MEMORY_MIB="64")
    assert outcome.stdout.splitlines() == [
        "npu:1 npu:1 npu:1 npu:0",
        "Expected all tensors to be on the same device, but found at least two devices, npu:0 and npu:1",
        "64 40 0",
        "first is full",
        "npu:1",
        "npu:0",
        "True 0",
        "npu:1",
    ], outcome.stderr
