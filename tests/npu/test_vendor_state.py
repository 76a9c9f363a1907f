"""torch_npu's random state, memory, streams, serialisation and the generic accelerator interface."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset


def test_seeding_repeats_and_continues(device):
    torch.npu.manual_seed(1)
    first = torch.randn(5, device=device)
    second = torch.randn(5, device=device)
    torch.npu.manual_seed(1)
    assert torch.equal(torch.randn(5, device=device), first)
    assert not torch.equal(first, second)


def test_torchs_seed_covers_the_device(device):
    torch.manual_seed(7)
    first = torch.rand(3, device=device)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3, device=device), first)


def test_the_random_state_is_saved_and_put_back(device):
    state = torch.npu.get_rng_state()
    first = torch.rand(4, device=device)
    torch.npu.set_rng_state(state)
    assert state.shape == (16,)
    assert torch.equal(torch.rand(4, device=device), first)


def test_a_generator_is_independent_of_the_default(device):
    generator = torch.Generator(device=device).manual_seed(3)
    state = torch.npu.get_rng_state()
    first = torch.randn(3, device=device, generator=generator)
    assert torch.equal(state, torch.npu.get_rng_state())
    assert torch.equal(first, torch.randn(3, device=device, generator=generator.manual_seed(3)))


def test_fork_rng_restores_the_device(device):
    torch.npu.manual_seed(0)
    expected = torch.rand(3, device=device)
    torch.npu.manual_seed(0)
    with torch.random.fork_rng(devices=[0], device_type="npu"):
        torch.rand(3, device=device)
    assert torch.equal(torch.rand(3, device=device), expected)


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda d: torch.rand(20000, device=d), 0.5),
        (lambda d: torch.randn(20000, device=d), 0.0),
        (lambda d: torch.randint(0, 11, (20000,), device=d).float(), 5.0),
        (lambda d: torch.empty(20000, device=d).bernoulli_(0.3), 0.3),
        (lambda d: torch.multinomial(torch.tensor([1.0, 3.0], device=d), 20000, True).float(), 0.75),
    ],
    ids=["rand", "randn", "randint", "bernoulli_", "multinomial"],
)
def test_distributions(device, draw, mean):
    torch.npu.manual_seed(0)
    assert draw(device).mean().item() == pytest.approx(mean, abs=0.1)


def test_memory_statistics(device):
    # Compared with what earlier tests still hold, and large enough for a segment of its own.
    size = 64 << 20
    gc.collect()
    torch.npu.empty_cache()
    torch.npu.reset_peak_memory_stats()
    allocated, reserved = torch.npu.memory_allocated(), torch.npu.memory_reserved()
    block = torch.empty(size, dtype=torch.uint8, device=device)
    held = torch.npu.memory_allocated()
    assert allocated + size <= held <= torch.npu.max_memory_allocated()
    assert torch.npu.memory_reserved() >= reserved + size
    del block
    assert torch.npu.memory_allocated() == allocated
    torch.npu.empty_cache()
    assert torch.npu.memory_reserved() == reserved
    assert "allocated_bytes.all.peak" in torch.npu.memory_stats()


def test_streams_and_events(device):
    stream = torch.npu.Stream()
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    with torch.npu.stream(stream):
        start.record()
        product = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
        end.record()
    torch.npu.current_stream().wait_stream(stream)
    end.synchronize()
    assert start.elapsed_time(end) >= 0
    assert stream.query()
    assert product[0, 0].item() == 64.0


def test_the_generic_accelerator_interface(device):
    assert torch.accelerator.current_accelerator().type == "npu"
    assert torch.accelerator.is_available()
    assert torch.accelerator.device_count() == 1
    torch.accelerator.synchronize()
    assert torch.get_device_module("npu") is torch.npu


def test_device_properties(device):
    properties = torch.npu.get_device_properties(0)
    assert (properties.name, properties.cube_core_num, properties.vector_core_num) == ("Ascend910B1", 24, 48)
    assert torch.npu.is_bf16_supported()


@pytest.mark.parametrize(("location", "expected"), [(None, "npu"), ("cpu", "cpu"), ("npu", "npu")])
def test_save_and_load(device, tmp_path, location, expected):
    path = tmp_path / "values.pt"
    torch.save({"a": torch.ones(3, device=device)}, path)
    assert torch.load(path, map_location=location)["a"].device.type == expected


def test_copies_and_pickles(device):
    layer = torch.nn.Linear(2, 2).to(device)
    assert copy.deepcopy(layer).weight.device == device
    assert torch.equal(pickle.loads(pickle.dumps(layer.weight)), layer.weight)  # noqa: S301 -- pickled one line up


def test_pinned_memory(device):
    loader = DataLoader(TensorDataset(torch.arange(8.0)), batch_size=4, pin_memory=True)
    (batch,) = next(iter(loader))
    assert batch.is_pinned()
    assert batch.to(device, non_blocking=True).tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_host_profiler_sees_operators(device):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(4, device=device) + 1
    assert any(event.key == "aten::add" for event in profile.key_averages())


def test_hccl_is_registered_for_the_device(device):
    assert torch.distributed.is_backend_available("hccl")
    assert torch.distributed.get_default_backend_for_device("npu") == "hccl"
