"""How a result is compared with its reference: in float64 on the host, within a stated rounding bound."""

from __future__ import annotations

from typing import Any

import torch

from hal.ops.catalogue import Arguments, Op

# Sixteen float32 roundings of the terms a result is made of.
ACCUMULATION = 2.0**-20
# Below this, results of float32 arithmetic are judged absolutely: a device may flush subnormals, its own
# intermediate ones included, to zero.
FLUSH = 2.0**-120


def host64(x: torch.Tensor) -> torch.Tensor:
    """`x` in float64 on the host, its autograd history kept; moved before it is widened, because a device may narrow
    float64 silently.
    """
    return x.to("cpu").to(torch.float64)


def as_tensors(result: Any) -> tuple[torch.Tensor, ...]:
    """An operator's result, a tensor, number or tuple of those, as a tuple of tensors on the host."""
    if isinstance(result, tuple):
        return tuple(torch.as_tensor(part).detach().cpu() for part in result)
    return (torch.as_tensor(result).detach().cpu(),)


def error_bound(
    op: Op, arguments: Arguments, dtype: torch.dtype, references: tuple[torch.Tensor, ...] | None = None
) -> tuple[torch.Tensor, ...]:
    """Largest difference from the reference, elementwise in float64, that rounding explains for a result of `dtype`
    computed with float32 accumulation in any order: half a unit in the last place of the result, plus 2**-20 times the
    operator's `error_scale`, plus what flushing of subnormals may cost. Zero for an `exact` operator. `references` are
    the tensors of `op.reference(*arguments)` where the caller has them already.
    """
    known = as_tensors(op.reference(*arguments)) if references is None else references
    if op.exact:
        return tuple(torch.zeros_like(reference, dtype=torch.float64) for reference in known)
    scales = as_tensors(op.error_scale(*arguments)) if op.error_scale else known
    unit = torch.finfo(dtype)
    return tuple(
        reference.double().abs() * (unit.eps / 2)
        + scale.double().abs() * ACCUMULATION
        + max(unit.smallest_normal * unit.eps, FLUSH)
        for reference, scale in zip(known, scales, strict=True)
    )
