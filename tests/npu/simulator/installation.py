"""Put the host's arithmetic under the names of torch_npu's kernels."""

from __future__ import annotations

import os

import torch

LIBRARY_VARIABLE = "NPU_SIM_LIBRARY"

# What only allocates, views or reads one number needs no arithmetic: torch_npu's own code for these runs
# on the stub as it runs on a device. The last group is composed of other operators.
KEPT = {
    *("empty.memory_format", "empty_strided", "empty_like", "new_empty_strided"),
    *("as_strided", "as_strided_", "view", "_reshape_alias", "unfold", "view_as_complex", "view_as_real"),
    *("unsqueeze", "squeeze", "squeeze.dim", "flatten_dense_tensors"),
    *("set_", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor", "is_set_to"),
    *("resize_", "resize_as_", "contiguous", "_to_copy", "_lazy_clone", "_local_scalar_dense"),
    *("is_pinned", "_pin_memory", "record_stream"),
    *("scaled_dot_product_attention", "_fused_sdp_choice", "_foreach_copy_", "matmul_double_backward"),
}


def install() -> int:
    """Load the compiled kernels and replace torch_npu's; returns how many operators were replaced."""
    torch.ops.load_library(os.environ[LIBRARY_VARIABLE])
    replaced = int(torch.ops.npu_sim.install_kernels(_computed_on_host()))
    # Their operators can be named only now: these modules register kernels when they are imported.
    from simulator import attention, fused_ops, layer_norm, matmul_backward, switches  # noqa: F401

    switches.follow_vendor()
    return replaced


def _computed_on_host() -> list[str]:
    """The aten operators that torch_npu implements and the host can compute."""
    # torch_npu registers some kernels under aten for operators that it defines nowhere.
    defined = set(torch._C._dispatch_get_all_op_names())
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1")
    names = [name for name in registered if name.startswith("aten::") and name in defined]
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    return [name[6:] for name in names if name[6:] not in KEPT and has_kernel(name, "CPU")]
