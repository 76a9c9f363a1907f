"""Host forms of torch_npu's fused operators, forward and backward, after their public documentation.

They give the meaning of each operator, not the rounding of the device's kernels.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.nn.functional import silu

from simulator.kernels_in_python import kernel

# The order of torch's C++ scalar types, by which npu_dtype_cast names a dtype.
_SCALAR_TYPES = {0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16}
_SCALAR_TYPES |= {6: torch.float32, 7: torch.float64, 9: torch.complex64, 11: torch.bool, 15: torch.bfloat16}


@kernel("npu::npu_rms_norm")
def rms_norm(call: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = call.input.float(), call.gamma.float()
    normalised = tuple(range(x.dim() - weight.dim(), x.dim()))
    reciprocal = torch.rsqrt(x.pow(2).mean(normalised, keepdim=True) + call.epsilon)
    return (x * reciprocal * weight).to(call.input.dtype), reciprocal


@kernel("npu::npu_rms_norm_backward")
def rms_norm_backward(call: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    grad, x, weight, reciprocal = (t.float() for t in (call.dy, call.input, call.gamma, call.rstd))
    batch = tuple(range(x.dim() - weight.dim()))
    normalised = tuple(range(len(batch), x.dim()))
    grad_weight = grad * x * reciprocal
    scaled = grad * weight
    projection = (scaled * x).mean(normalised, keepdim=True)
    grad_x = reciprocal * (scaled - x * reciprocal * reciprocal * projection)
    # The device returns the weight's gradient in float32 whatever the weight's dtype is.
    return grad_x.to(call.input.dtype), grad_weight.sum(batch) if batch else grad_weight


@kernel("npu::npu_swiglu")
def swiglu(call: SimpleNamespace) -> torch.Tensor:
    gate, up = call.input.float().chunk(2, call.dim)
    return (silu(gate) * up).to(call.input.dtype)


@kernel("npu::npu_swiglu_backward")
def swiglu_backward(call: SimpleNamespace) -> torch.Tensor:
    with torch.enable_grad():
        x = call.input.detach().float().requires_grad_()
        gate, up = x.chunk(2, call.dim)
        (grad,) = torch.autograd.grad(silu(gate) * up, x, call.grad_output.float())
    return grad.to(call.input.dtype)


def _rotated(x: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat((-second, first), -1)
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


@kernel("npu::npu_rotary_mul")
def rotary_mul(call: SimpleNamespace) -> torch.Tensor:
    x, cos, sin = call.input.float(), call.r1.float(), call.r2.float()
    return (x * cos + _rotated(x, call.rotary_mode) * sin).to(call.input.dtype)


@kernel("npu::npu_rotary_mul_backward")
def rotary_mul_backward(call: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    inputs = (call.input, call.r1, call.r2)
    with torch.enable_grad():
        x, cos, sin = leaves = [t.detach().float().requires_grad_() for t in inputs]
        result = x * cos + _rotated(x, call.rotary_mode) * sin
        grads = torch.autograd.grad(result, leaves, call.grad.float())
    return tuple(grad.to(t.dtype) for grad, t in zip(grads, inputs, strict=True))


@kernel("npu::_npu_dropout")
def dropout(call: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    # Drawn on the device, so that its generator advances.
    uniform = torch.ops.npu_sim.host_view(torch.rand(call.input.shape, device=call.device))
    kept = uniform >= call.p
    return (call.input * kept / (1 - call.p)).to(call.input.dtype), kept.to(torch.uint8)


@kernel("npu::npu_dropout_backward")
def dropout_backward(call: SimpleNamespace) -> torch.Tensor:
    grad = call.grad_output
    return (grad * call.mask.to(grad.dtype) / (1 - call.p)).to(grad.dtype)


@kernel("npu::npu_dtype_cast")
def dtype_cast_by_number(call: SimpleNamespace) -> torch.Tensor:
    dtype = call.dtype if isinstance(call.dtype, torch.dtype) else _SCALAR_TYPES[call.dtype]
    return call.input.to(dtype, copy=True)


@kernel("npu::_npu_dtype_cast")
def dtype_cast(call: SimpleNamespace) -> torch.Tensor:
    return call.input.to(call.dtype, copy=True)


@kernel("npu::npu_dtype_cast_backward")
def dtype_cast_backward(call: SimpleNamespace) -> torch.Tensor:
    return call.grad.to(call.dtype, copy=True)
