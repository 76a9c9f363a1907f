"""The settings that change an NPU's arithmetic: what torch_npu 2.13 offers, pinned and reported."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import hal
from backends.switches import Switch, attribute, environment, pinned, report

FALLBACK = "TORCH_NPU_FALLBACK_CPU_DISABLE"
OVERFLOW = ("INF_NAN_MODE_ENABLE", "INF_NAN_MODE_FORCE_DISABLE")
# The vendor's own list for repeatable results; read by CANN, ATB and the collectives when they first run.
DETERMINISTIC_ENVIRONMENT = {
    "CLOSE_MATMUL_K_SHIFT": "1",
    "ATB_MATMUL_SHUFFLE_K_ENABLE": "0",
    "HCCL_DETERMINISTIC": "true",
    "LCCL_DETERMINISTIC": "1",
}
REPORTED_ENVIRONMENT = (
    *DETERMINISTIC_ENVIRONMENT,
    *OVERFLOW,
    FALLBACK,
    "TORCH_NPU_USE_COMPATIBLE_IMPL",
    "ASCEND_LAUNCH_BLOCKING",
    "TASK_QUEUE_ENABLE",
)
# Cube units' ways of computing float32 that keep its bits; any other that a user set is put back to the first.
EXACT_CUBE_MODES = ("KEEP_DTYPE", "USE_FP32_ADD")


def current(npu: Any) -> dict[str, str]:
    """Every switch of `npu` (torch.npu) and every variable that matters, as text."""
    values = report([*_hf32_switches(npu), *(environment(name) for name in REPORTED_ENVIRONMENT)])
    values["cube_math_type"] = _name_of(npu.matmul.cube_math_type)
    # Asked only where nothing forbids it: torch_npu raises on half a request for saturation.
    values["inf_nan_mode"] = str(os.environ.get(OVERFLOW[0]) != "0" and npu.utils.is_support_inf_nan())
    values["deterministic_level"] = str(deterministic_level(npu))
    return values


@contextlib.contextmanager
def pinned_precision(npu: Any, mode: hal.NumericMode) -> Iterator[None]:
    """Set HF32 of products and convolutions, and the variables of a deterministic `mode`, for the block."""
    require_inf_nan(npu)
    reduced = mode.reduced_precision_matmul
    settings: list[tuple[Switch, Any]] = [(switch, reduced) for switch in _hf32_switches(npu)]
    cube = npu.matmul.cube_math_type
    if not reduced and cube is not None and cube.name not in EXACT_CUBE_MODES:
        settings.append((attribute("cube_math_type", npu.matmul, "cube_math_type"), type(cube).KEEP_DTYPE))
    if mode.deterministic:
        settings += [(environment(name), value) for name, value in DETERMINISTIC_ENVIRONMENT.items()]
    with pinned(settings):
        yield


def deterministic_level(npu: Any) -> int | None:
    """torch_npu's level of determinism (0 none, 1 same bits each run, 2 and 3 stronger), None where it has none."""
    if not hasattr(npu, "set_deterministic_level"):  # an older torch_npu: torch's flag is all there is
        return None
    return int(npu._get_deterministic_level())


@contextlib.contextmanager
def pinned_level(npu: Any, before: int | None, deterministic: bool) -> Iterator[None]:
    """Give torch_npu's level the value of torch's flag for the block, and `before` afterwards.

    The level and the flag change each other, so this goes inside whatever sets and restores the flag.
    """
    if before is None:
        yield
        return
    _set_level(npu, int(deterministic))
    try:
        yield
    finally:
        _set_level(npu, before)


def require_inf_nan(npu: Any) -> None:
    """Raise UsageError when overflow saturates: inf and NaN, by which faults show, would never appear."""
    enabled, forced = (os.environ.get(name) for name in OVERFLOW)
    if enabled == "0":
        raise hal.UsageError(
            f"{OVERFLOW[0]}='0' ({OVERFLOW[1]}={forced!r}) asks for results that saturate, which hides overflow "
            "and NaN: unset both before Python starts"
        )
    if not npu.utils.is_support_inf_nan():
        raise hal.UsageError(
            f"'{npu.get_device_name()}' saturates on overflow, which hides inf and NaN: "
            "use a device with inf/NaN mode (Ascend 910B or later)"
        )


def forbid_cpu_fallback() -> None:
    """Make an operator without an NPU kernel raise instead of running on the host, unless the user decided.

    torch_npu reads the variable when it first falls back, so this has to come before any operator.
    """
    os.environ.setdefault(FALLBACK, "1")


def _hf32_switches(npu: Any) -> list[Switch]:
    return [
        attribute("matmul.allow_hf32", npu.matmul, "allow_hf32"),
        attribute("conv.allow_hf32", npu.conv, "allow_hf32"),
    ]


def _set_level(npu: Any, level: int) -> None:
    with warnings.catch_warnings():
        # It warns on every call that torch's flag must not be used beside it; the two are kept equal here.
        warnings.filterwarnings("ignore", message=".*set_deterministic_level.*", category=UserWarning)
        npu.set_deterministic_level(level)


def _name_of(cube: Any) -> str:
    return "default" if cube is None else str(cube.name)
