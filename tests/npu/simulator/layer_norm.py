"""Host form of LayerNorm and its gradient: mean, deviation and the sums over rows are float32 whatever the dtype, as
op-plugin allocates them (LayerNormKernelNpuOpApi.cpp). The host's own keeps them in the narrow dtype, up to 3 % off.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from simulator.kernels_in_python import kernel


@kernel("aten::native_layer_norm")
def layer_norm(call: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, weight, bias = (_wide(tensor) for tensor in (call.input, call.weight, call.bias))
    result, mean, deviation = torch.ops.aten.native_layer_norm(x, call.normalized_shape, weight, bias, call.eps)
    return result.to(call.input.dtype), mean, deviation


@kernel("aten::native_layer_norm_backward")
def layer_norm_backward(call: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    tensors = (call.grad_out, call.input, call.mean, call.rstd, call.weight, call.bias)
    grad, x, mean, deviation, weight, bias = (_wide(tensor) for tensor in tensors)
    gradients = torch.ops.aten.native_layer_norm_backward(
        grad, x, call.normalized_shape, mean, deviation, weight, bias, call.output_mask
    )
    return tuple(torch.empty(0) if part is None else part.to(call.input.dtype) for part in gradients)


def _wide(tensor: Any) -> Any:
    return tensor.float() if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() else tensor
