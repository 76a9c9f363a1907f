"""Host form of matmul's gradient, which torch_npu computes by one operator of its own."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from simulator import switches
from simulator.kernels_in_python import kernel


@kernel("aten::matmul_backward")
def matmul_backward(call: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    left, right, grad = call.self, call.other, call.grad
    if switches.get("hf32_matmul") and left.dtype == torch.float32:
        left, right, grad = (torch.ops.npu_sim.round_to_hf32(x) for x in (left, right, grad))
    if left.dim() >= 2 and right.dim() == 2:
        return _linear(left, right, grad)
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (left, right)]
        grads = torch.autograd.grad(torch.matmul(*leaves), leaves, grad)
    return grads[0].contiguous(), grads[1].contiguous()


def _linear(left: torch.Tensor, right: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # The batch is folded into rows, as op-plugin does; autograd on the host does the same, hence equal bits.
    rows, grad_rows = left.reshape(-1, left.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return _product(grad_rows, right.mT).view(left.shape), _product(rows.mT, grad_rows)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left.flip(-1) @ right.flip(-2) if switches.get("reorder") else left @ right
