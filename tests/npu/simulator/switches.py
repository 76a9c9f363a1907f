"""The switches of the simulated arithmetic, set by a test or by torch_npu's own options."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch

NAMES = ("hf32_matmul", "hf32_conv", "reorder", "saturate", "flush_subnormal", "gelu_tanh")


def get(name: str) -> bool:
    """Whether the switch `name` is on."""
    return bool(torch.ops.npu_sim.get_switch(name))


def put(name: str, value: bool) -> None:
    """Turn the switch `name` on or off for the process."""
    torch.ops.npu_sim.set_switch(name, value)


@contextlib.contextmanager
def arithmetic(unsupported: tuple[str, ...] = (), **switches: bool) -> Iterator[None]:
    """Turn switches on or off for a block; operators named in `unsupported` ("aten::name") raise in it."""
    before = {name: get(name) for name in switches}
    unsupported_before = torch.ops.npu_sim.get_unsupported()
    try:
        for name, value in switches.items():
            put(name, value)
        torch.ops.npu_sim.set_unsupported([*unsupported_before, *unsupported])
        yield
    finally:
        for name, value in before.items():
            put(name, value)
        torch.ops.npu_sim.set_unsupported(unsupported_before)


def follow_vendor() -> None:
    """Let torch_npu's options for HF32 and for the compatible gelu, and CANN's overflow mode, drive the switches."""
    from torch_npu import _C as vendor

    set_option = vendor._npu_setOption

    @functools.wraps(set_option)
    def set_option_and_follow(options: dict[str, Any]) -> None:
        set_option(options)
        _read_vendor_options()

    # On a device these options are read by each kernel; here the one setter is where they can be seen.
    vendor._npu_setOption = set_option_and_follow
    _read_vendor_options()
    put("saturate", os.environ.get("INF_NAN_MODE_ENABLE") == "0" and _forced_saturation())


def _forced_saturation() -> bool:
    return os.environ.get("INF_NAN_MODE_FORCE_DISABLE") == "1"


def _read_vendor_options() -> None:
    from torch_npu import _C as vendor
    from torch_npu import npu
    from torch_npu.npu.npu_config import _CubeMathType

    put("gelu_tanh", vendor._npu_getOption("TORCH_NPU_USE_COMPATIBLE_IMPL") != b"1")
    put("hf32_matmul", npu.matmul.allow_hf32 or npu.matmul.cube_math_type == _CubeMathType.USE_HF32)
    put("hf32_conv", npu.conv.allow_hf32)
