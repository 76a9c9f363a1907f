"""What says that memory ran out, and how much is left."""

from __future__ import annotations

import resource

import pytest
import torch

import hal
from hal.memory import out_of_memory

HUGE = 2**50


def real_host_failure() -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(HUGE, dtype=torch.int8)
    return caught.value


def test_the_hosts_allocator_is_understood():
    assert out_of_memory(real_host_failure())


def test_an_error_raised_from_it_is_understood():
    error = ValueError("loading failed")
    error.__cause__ = real_host_failure()
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("full"),
        RuntimeError("NPU out of memory. NPU 0; Tried to allocate 2.00 GiB"),
    ],
    ids=repr,
)
def test_other_devices_are_understood(error):
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("memory layout")], ids=repr)
def test_other_errors_are_not_taken_for_it(error):
    assert not out_of_memory(error)


@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_free_memory_of_the_host_follows_the_limits_of_the_process(limit):
    backend = hal.get_backend("cpu-reference")
    without = backend.free_memory()
    before = resource.getrlimit(limit)
    import psutil

    used = psutil.Process().memory_info()
    taken = used.vms if limit == resource.RLIMIT_AS else used.data
    resource.setrlimit(limit, (taken + 2**28, before[1]))
    try:
        assert 0 < backend.free_memory() <= 2**28
    finally:
        resource.setrlimit(limit, before)
    assert without > 2**28
