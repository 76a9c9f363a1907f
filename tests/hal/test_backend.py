"""What every backend inherits: device parsing, the numeric mode, the timer and the operator table."""

from __future__ import annotations

import math
import mmap
import time
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch

import hal
from hal.ops import CATALOGUE


class Two(hal.HostBackend):
    """Two devices of a made-up type, in host memory."""

    name = "two"
    device_type = "xyz"

    @classmethod
    def probe(cls) -> hal.Probe:
        return hal.Probe(True, "always here", 2)


class Host(Two):
    name = "host"
    device_type = "cpu"


@pytest.fixture
def cpu() -> hal.TorchBackend:
    return hal.get_backend("cpu-reference")


@pytest.mark.parametrize(
    ("device", "index"),
    [(None, 0), (0, 0), (1, 1), ("1", 1), ("xyz", 0), ("xyz:1", 1), ("two", 0), ("two:1", 1), (np.int64(1), 1)],
)
def test_device_is_an_index_a_type_or_both(device, index):
    assert Two.at(device).index == index


def test_torch_device_is_accepted():
    assert Host.at(torch.device("cpu")).index == 0
    assert Host.at(torch.device("cpu", 1)).index == 1


@pytest.mark.parametrize(
    "device",
    [
        "abc:1",
        "abc",
        "xyz:",
        ":1",
        "",
        "xyz:x",
        "xyz:1:1",
        "xyz1",
        -1,
        "-1",
        "²",
        True,
        1.0,
        "xyz.1",
        torch.device("cpu"),
    ],
)
def test_device_of_another_type_or_form_is_refused(device):
    with pytest.raises(hal.UsageError) as caught:
        Two.at(device)
    assert f"device '{device}' does not belong to backend 'two': give an index, 'xyz' or 'xyz:INDEX'" in str(
        caught.value
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("device", [2, "xyz:7", "99999"])
def test_missing_index_is_unavailable_not_another_device(device):
    with pytest.raises(hal.BackendUnavailableError, match=r"this machine has 2 \(indices 0 to 1\)") as caught:
        Two.at(device)
    assert caught.value.exit_code == 3


def test_load_runs_after_the_probe_and_before_the_instance():
    order = []

    class Ordered(Two):
        @classmethod
        def probe(cls) -> hal.Probe:
            order.append("probe")
            return super().probe()

        @classmethod
        def load(cls) -> None:
            order.append("load")

        def __init__(self, index: int) -> None:
            order.append("init")
            super().__init__(index)

    Ordered.at(1)
    assert order == ["probe", "load", "init"]


def test_load_is_not_called_for_an_unavailable_backend():
    class Absent(Two):
        @classmethod
        def probe(cls) -> hal.Probe:
            return hal.Probe(False, "no driver")

        @classmethod
        def load(cls) -> None:
            pytest.fail("loaded although unavailable")

    with pytest.raises(hal.BackendUnavailableError, match="no driver"):
        Absent.at(None)


def deterministic_state() -> tuple[bool, bool, str]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
    )


@pytest.fixture
def outer_state(request):
    """A state of torch's switches that is not the default, and the default again afterwards."""
    before = deterministic_state()
    enabled, warn_only, precision = request.param
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.set_float32_matmul_precision(precision)
    yield deterministic_state()
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.set_float32_matmul_precision(before[2])


OUTER = [(False, False, "highest"), (True, False, "high"), (True, True, "medium")]


@pytest.mark.parametrize("outer_state", OUTER, indirect=True)
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("reduced", [True, False])
def test_numeric_mode_holds_inside_and_is_restored_after(cpu, outer_state, deterministic, reduced):
    with cpu.numeric_mode(hal.NumericMode(deterministic, reduced)):
        enabled, _, precision = deterministic_state()
        assert enabled is deterministic
        assert (precision == "highest") is not reduced
        assert cpu.numeric_switches()["float32_matmul_precision"] == precision
        assert cpu.numeric_switches()["deterministic_algorithms"] == str(deterministic)
    assert deterministic_state() == outer_state


@pytest.mark.parametrize("outer_state", OUTER, indirect=True)
def test_numeric_mode_is_restored_after_an_exception(cpu, outer_state):
    with pytest.raises(KeyError), cpu.numeric_mode(hal.NumericMode(not outer_state[0], True)):  # noqa: PT012
        assert deterministic_state() != outer_state
        raise KeyError
    assert deterministic_state() == outer_state


@pytest.mark.parametrize("outer_state", OUTER, indirect=True)
def test_numeric_modes_nest(cpu, outer_state):
    with cpu.numeric_mode(hal.NumericMode(True)):
        with cpu.numeric_mode(hal.NumericMode(False, True)):
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "highest"
    assert deterministic_state() == outer_state


def test_operator_without_a_deterministic_form_still_runs_in_deterministic_mode(cpu):
    message = "put_ does not have a deterministic implementation, but you set ..."
    with cpu.numeric_mode(hal.NumericMode(deterministic=True)):
        warnings.warn(message, stacklevel=1)  # what torch says in this mode; warnings are errors here
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    with pytest.warns(UserWarning, match="deterministic implementation"):
        warnings.warn(message, stacklevel=1)


def test_timer_measures_the_block_and_nothing_else(cpu):
    with cpu.timer() as timer:
        assert math.isnan(timer.seconds)
        time.sleep(0.02)
    time.sleep(0.05)
    assert 0.02 <= timer.seconds < 0.05


def test_timer_waits_for_the_device_before_and_after():
    order = []

    class Queued(Two):
        def synchronize(self) -> None:
            order.append("synchronize")

    with Queued(0).timer():
        order.append("block")
    assert order == ["synchronize", "block", "synchronize"]


def test_timer_of_a_block_that_fails_has_no_result(cpu):
    with pytest.raises(KeyError), cpu.timer() as timer:
        raise KeyError
    assert math.isnan(timer.seconds)


def test_generator_repeats_and_leaves_the_global_stream_alone(cpu):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = torch.rand(4, generator=cpu.generator(11))
    second = torch.rand(4, generator=cpu.generator(11))
    other = torch.rand(4, generator=cpu.generator(12))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(2), expected)


def test_host_backend_needs_only_a_name_and_a_probe():
    backend = Host.at(1)
    assert backend.device == torch.device("cpu")
    assert torch.ones(2, device=backend.device).device == backend.device
    assert backend.device_name()
    assert backend.versions() == {"torch": torch.__version__}
    stats = backend.memory()
    assert 0 < stats.allocated <= stats.total
    assert 0 < stats.peak <= stats.total
    backend.synchronize()
    backend.reset_peak_memory()
    assert backend.collective == "gloo"


def test_host_memory_counts_what_is_allocated(cpu):
    before = cpu.memory().allocated
    pages = mmap.mmap(-1, 64 * 2**20)  # a tensor of torch's own may lie in memory that the process has freed and kept
    torch.frombuffer(pages, dtype=torch.uint8).fill_(1)
    assert cpu.memory().allocated - before > 32 * 2**20
    assert cpu.memory().peak >= 64 * 2**20


class Partial(Host):
    """A backend with one operator of its own and one that it lacks."""

    name = "partial"
    unsupported_ops: ClassVar = {"bmm": "its compiler has no batched product"}

    def op_overrides(self):
        return {"matmul": lambda a, b: ("native", a, b)}


def test_operator_table_takes_the_backends_own_and_else_the_default():
    ops = Partial(0).ops
    assert ops.matmul(1, 2) == ("native", 1, 2)
    assert ops.is_native("matmul")
    assert ops.silu is CATALOGUE["silu"].default
    assert not ops.is_native("silu")


def test_unsupported_operator_is_refused_with_the_backends_reason():
    with pytest.raises(hal.UnsupportedError) as caught:
        _ = Partial(0).ops.bmm
    assert "'partial' does not support operator 'bmm': its compiler has no batched product" in str(caught.value)
    assert caught.value.exit_code == 2


def test_unknown_operator_lists_the_catalogue():
    with pytest.raises(hal.UsageError, match=r"unknown operator 'matmull'; the catalogue has: .*matmul"):
        _ = Partial(0).ops.matmull


def test_operator_table_lists_the_catalogue_and_is_no_container_of_private_names():
    assert dir(Partial(0).ops) == sorted(CATALOGUE)
    assert not hasattr(Partial(0).ops, "__wrapped__")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("op_overrides", lambda self: {"matmull": print}), ("unsupported_ops", {"matmull": "none"})],
)
def test_operator_outside_the_catalogue_is_refused(attribute, value):
    wrong = type("Wrong", (Host,), {attribute: value})
    with pytest.raises(hal.UsageError, match="'host' names operators that are not in the catalogue: matmull"):
        _ = wrong(0).ops
