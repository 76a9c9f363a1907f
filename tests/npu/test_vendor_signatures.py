"""What the backend calls in torch_npu exists there with the arguments that it passes."""

from __future__ import annotations

import inspect

import pytest
import torch

FUNCTIONS = {
    "set_deterministic_level": ["level"],
    "get_device_name": ["device_name"],
    "synchronize": ["device"],
    "memory_allocated": ["device"],
    "max_memory_allocated": ["device"],
    "mem_get_info": ["device"],
    "reset_peak_memory_stats": ["device"],
    "current_stream": ["device"],
    "use_compatible_impl": ["is_enable"],
}

SCHEMAS = {
    "npu_rms_norm": "npu_rms_norm(Tensor input, Tensor gamma, float epsilon=",
    "npu_swiglu": "npu_swiglu(Tensor input, int dim=-1) -> Tensor",
    "npu_rotary_mul": 'npu_rotary_mul(Tensor input, Tensor r1, Tensor r2, str rotary_mode="half", Tensor? rotate=None)',
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(npu, name):
    parameters = list(inspect.signature(getattr(torch.npu, name)).parameters)
    assert len(parameters) >= len(FUNCTIONS[name])


@pytest.mark.parametrize("name", SCHEMAS)
def test_fused_operators(npu, name):
    import torch_npu

    assert SCHEMAS[name] in str(getattr(torch.ops.npu, name).default._schema)
    assert callable(getattr(torch_npu, name))


def test_events_time(npu):
    event = torch.npu.Event(enable_timing=True)
    assert isinstance(event, torch.Event)
    assert callable(event.elapsed_time)


def test_the_private_level_reader_exists(npu):
    assert torch.npu._get_deterministic_level() in (0, 1, 2, 3)


def test_cube_modes_have_the_names_the_backend_uses(npu):
    from torch_npu.npu.npu_config import _CubeMathType

    from backends import npu_numerics

    assert set(npu_numerics.EXACT_CUBE_MODES) <= set(_CubeMathType.__members__)


def test_overflow_mode_can_be_asked(npu):
    assert torch.npu.utils.is_support_inf_nan() is True
