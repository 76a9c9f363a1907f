"""Whether an Ascend NPU can be used here, found out without importing torch_npu.

torch_npu patches torch when it is imported, and where its libraries are missing the import fails half
way. So every condition that it needs is checked first, in the order in which a user can mend them.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

import torch

import hal

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
HOME = "ASCEND_HOME_PATH"
OPERATORS = "ASCEND_OPP_PATH"
# What torch_npu's own library links first; the rest of CANN lies in the same folders.
CANN_LIBRARIES = ("libascendcl.so", "libhccl.so")


def probe() -> hal.Probe:
    """Look for the wheel, a conflicting accelerator, CANN and devices; report the first obstacle."""
    obstacle = _wheel_obstacle() or _accelerator_obstacle() or _cann_obstacle() or _toolkit_obstacle()
    if obstacle is not None:
        return hal.Probe(False, obstacle)
    return _count_devices()


def _wheel_obstacle() -> str | None:
    if importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed: pip install 'srdd-hal[npu]' in the release that matches torch"
    try:
        wheel = importlib.metadata.version("torch_npu")
    except importlib.metadata.PackageNotFoundError:  # built in place: nothing to compare
        return None
    if _release(wheel) != _release(torch.__version__):
        return (
            f"torch_npu {wheel} is built for torch {_release(wheel)} and torch is {torch.__version__}: "
            "install the two in the same release"
        )
    return None


def _release(version: str) -> str:
    match = re.match(r"\d+\.\d+\.\d+", version)
    return match.group() if match else version


def _accelerator_obstacle() -> str | None:
    other = torch.accelerator.current_accelerator()
    if other is None or other.type == "npu":
        return None
    return (
        f"torch already serves the accelerator '{other.type}' and torch_npu refuses a second one "
        "in a process (ERR00007): use a CPU build of torch"
    )


def _cann_obstacle() -> str | None:
    try:
        for library in CANN_LIBRARIES:
            ctypes.CDLL(library)
    except OSError as error:
        return (
            f"torch_npu is installed but CANN is not loadable ({error}): "
            "source set_env.sh of the CANN toolkit in this shell, and check the driver with npu-smi info"
        )
    return None


def _toolkit_obstacle() -> str | None:
    """What torch_npu checks of the toolkit's folders while it is imported."""
    home = os.environ.get(HOME)
    if home is None:
        return None
    operators = os.environ.get(OPERATORS)
    if operators is None:
        return f"{HOME}='{home}' is set and {OPERATORS} is not: source set_env.sh of the CANN toolkit"
    for folder in (Path(home), Path(operators), Path(home, "runtime"), Path(home, "compiler")):
        if not folder.exists():
            return f"the CANN toolkit at {HOME}='{home}' lacks '{folder}': install it and source its set_env.sh"
    return None


def _count_devices() -> hal.Probe:
    count = ctypes.c_uint32(0)
    # The same call that torch.npu.is_available() makes; it needs no context and allocates nothing.
    code = int(ctypes.CDLL(CANN_LIBRARIES[0]).aclrtGetDeviceCount(ctypes.byref(count)))
    if code == 0 and count.value > 0:
        return hal.Probe(True, f"{count.value} NPU(s), {_visible_note()}", count.value)
    outcome = "CANN sees no NPU" if code == 0 else f"CANN cannot count NPUs (aclrtGetDeviceCount returned {code})"
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return hal.Probe(False, f"{outcome}: check the driver and the devices with npu-smi info")
    return hal.Probe(False, f"{outcome} with {VISIBLE}='{visible}': unset it, or list existing ids in ascending order")


def _visible_note() -> str:
    visible = os.environ.get(VISIBLE)
    return "all visible" if visible is None else f"{VISIBLE}='{visible}'"
