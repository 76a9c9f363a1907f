"""The gradient of every differentiable operator, against that of its float64 reference."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from conformance.case import Case, Context
from conformance.evidence import Evidence, Mismatch, digest_arguments
from conformance.formats import short
from hal import noise
from hal.ops import CATALOGUE, SIZES, Op, SampleSpec
from hal.ops.precision import ACCUMULATION, FLUSH
from hal.ops.sampling import Values

# Wider values saturate softmax and attention, whose gradients are then differences of nearly equal terms.
RANGES: tuple[Values, ...] = ("normal", "one_sided", "near_zero")


def cases() -> Iterator[Case]:
    """One case for each differentiable operator, dtype, size and range of ordinary values."""
    for op in CATALOGUE.values():
        if not op.differentiable:
            continue
        for dtype, size, values in itertools.product(op.dtypes, SIZES, RANGES):
            yield Case(
                name=f"gradients/{op.name}/{short(dtype)}/{size}/{values}",
                subject=op.name,
                check=functools.partial(_check, op, SampleSpec(dtype, size, values)),
                purpose=f"gradients of {op.name} are those of its float64 reference, relative to the largest one",
                dtype=dtype,
                quick=size == "odd" and values != "near_zero",
                seeded=True,
            )


def _check(op: Op, spec: SampleSpec, context: Context) -> Evidence:
    arguments = op.sample(SampleSpec(spec.dtype, spec.size, spec.values, context.seed))
    evidence = Evidence(inputs=digest_arguments(arguments))
    results = _gradients(context.backend.ops.get(op.name), context.to_device(arguments), context.seed)
    # Widened first, because a leaf's gradient has the leaf's dtype; but what an exact operator does depends on its own.
    wide = [value.double() if _is_floating(value) and not op.exact else value for value in arguments]
    references = _gradients(op.reference, wide, context.seed)
    for index, (result, reference) in enumerate(zip(results, references, strict=True)):
        if result is None or reference is None:
            raise Mismatch(f"argument {index} has no gradient")
        evidence.within(f"gradient {index}", result, reference, _allowance(reference.double(), result.dtype))
    return evidence


def _allowance(reference: torch.Tensor, dtype: torch.dtype) -> float:
    """Relative to the largest gradient: half a unit for the result, one for what the backward pass reads rounded (the
    incoming gradient and a saved result), half a unit for a product of theirs, and float32 accumulation.
    """
    largest = float(reference.abs().max()) if reference.numel() else 0.0
    info = torch.finfo(dtype)
    return largest * (2 * info.eps + 4 * ACCUMULATION) + max(info.smallest_normal * info.eps, FLUSH)


def _gradients(
    function: Callable[..., Any], arguments: list[Any] | tuple[Any, ...], seed: int
) -> list[torch.Tensor | None]:
    leaves = [value.clone().requires_grad_() if _is_floating(value) else value for value in arguments]
    result = function(*leaves)
    incoming = noise.normal(result.shape, seed=seed, stream=noise.stream_key("incoming gradient"), device="cpu")
    # Of few bits, so that host and device are given the same numbers in every dtype.
    result.backward(incoming.to(torch.bfloat16).to(result.device).to(result.dtype))
    return [value.grad for value in leaves if _is_floating(value)]


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
