"""Host form of matmul's gradient, which torch_npu computes by one operator of its own."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from simulator import switches
from simulator.kernels_in_python import kernel


@kernel("aten::matmul_backward")
def matmul_backward(call: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    factors = (call.self, call.other, call.grad)
    if switches.get("hf32_matmul") and call.self.dtype == torch.float32:
        factors = tuple(torch.ops.npu_sim.round_to_hf32(x) for x in factors)
    left, right, grad = _as_matrices(*factors)
    if right.dim() == 2:
        # The batch is folded into rows, as op-plugin does; autograd on the host does the same, hence equal bits.
        left, grad = left.flatten(0, -2), grad.flatten(0, -2)
    unwanted = torch.empty(0)
    return (
        _gradient(grad, right.mT, left.shape, call.self.shape) if call.mask[0] else unwanted,
        _gradient(left.mT, grad, right.shape, call.other.shape) if call.mask[1] else unwanted,
    )


def _as_matrices(left: torch.Tensor, right: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A vector on the left is a row, on the right a column."""
    if left.dim() == 1:
        left, grad = left.unsqueeze(0), grad.unsqueeze(-2 if right.dim() > 1 else 0)
    if right.dim() == 1:
        right, grad = right.unsqueeze(-1), grad.unsqueeze(-1)
    return left, right, grad


def _gradient(left: torch.Tensor, right: torch.Tensor, summed: torch.Size, shape: torch.Size) -> torch.Tensor:
    if switches.get("reorder"):
        left, right = left.flip(-1), right.flip(-2)
    return (left @ right).sum_to_size(summed).reshape(shape).contiguous()
