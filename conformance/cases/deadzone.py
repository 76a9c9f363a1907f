"""The dead zone, bit for bit: which elements survive at ties, among equals, beside Inf, and what gradient passes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch

from conformance.case import Case, Context
from conformance.evidence import Evidence
from conformance.formats import short
from hal import noise
from hal.ops import CATALOGUE, SampleSpec

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
THRESHOLDS = (0.0, 0.01, 0.1, 0.5, 1.0)

Check = Callable[[torch.dtype, Context], Evidence]


def cases() -> Iterator[Case]:
    """One case for each rule and dtype."""
    for name, purpose, check in _RULES:
        for dtype in DTYPES:
            yield Case(
                f"deadzone/{name}/{short(dtype)}", "deadzone", functools.partial(check, dtype), purpose, dtype=dtype
            )


def _mask(dtype: torch.dtype, context: Context) -> Evidence:
    """A million decisions at the documents' thresholds, in both scopes."""
    evidence = Evidence()
    for threshold in THRESHOLDS:
        for scope in ("tensor", "token"):
            x = noise.normal((8, 257), seed=1, stream=noise.stream_key("deadzone", str(threshold)), device="cpu")
            x = x.to(dtype)
            result = context.call("deadzone", x, threshold, scope)
            evidence.equal(
                f"threshold {threshold}, scope {scope}", result, CATALOGUE["deadzone"].reference(x, threshold, scope)
            )
    return evidence


def _ties(dtype: torch.dtype, context: Context) -> Evidence:
    """An element equal to the threshold survives; its lower neighbour does not."""
    half = torch.tensor([0.5], dtype=dtype)
    lower, upper = _neighbours(half)
    x = torch.cat((torch.ones(1, dtype=dtype), half, lower, upper, -half, -lower))
    kept = torch.tensor([True, True, False, True, True, False])
    evidence = Evidence()
    evidence.equal("threshold 0.5 of 1", context.call("deadzone", x, 0.5), torch.where(kept, x, 0.0))
    evidence.equal("threshold 0.5 of 1, by token", context.call("deadzone", x[None], 0.5, "token")[0], x * kept)
    # The product with the maximum is one float32 multiplication: 0.1 * 3 is 0.3 rounded there, not in a wider type.
    product = torch.tensor([3.0]) * torch.tensor([0.1])
    near = torch.cat([product.to(dtype), *_neighbours(product.to(dtype))])
    y = torch.cat((torch.tensor([3.0], dtype=dtype), near))
    survives = torch.cat((torch.tensor([True]), ~(near.float() < product)))
    evidence.equal("threshold 0.1 of 3", context.call("deadzone", y, 0.1), torch.where(survives, y, 0.0))
    return evidence


def _uniform_inputs(dtype: torch.dtype, context: Context) -> Evidence:
    """Where all are equal all survive, at every threshold; zeros stay zeros; one element is its own maximum."""
    evidence = Evidence()
    for threshold in THRESHOLDS:
        for name, x in (
            ("all equal", torch.full((3, 7), -1.5)),
            ("all zero", torch.zeros(3, 7)),
            ("one element", torch.tensor([[2.0]])),
            ("no element", torch.zeros(0, 7)),
        ):
            evidence.equal(
                f"{name}, threshold {threshold}", context.call("deadzone", x.to(dtype), threshold), x.to(dtype)
            )
    return evidence


def _nonfinite(dtype: torch.dtype, context: Context) -> Evidence:
    """Inf and NaN survive and set no maximum."""
    x = torch.tensor([math.inf, -math.inf, math.nan, 1.0, 0.09, -0.11], dtype=dtype)
    evidence = Evidence()
    expected = torch.where(torch.tensor([True, True, True, True, False, True]), x, 0.0)
    evidence.equal("threshold 0.1", context.call("deadzone", x, 0.1), expected)
    return evidence


def _batching(dtype: torch.dtype, context: Context) -> Evidence:
    """By token, a row's fate does not depend on the rows beside it."""
    x = noise.normal((6, 33), seed=2, device="cpu").to(dtype)
    x[3] *= 16
    together = context.call("deadzone", x, 0.1, "token").cpu()
    alone = torch.cat([context.call("deadzone", x[row : row + 1], 0.1, "token").cpu() for row in range(len(x))])
    evidence = Evidence()
    evidence.equal("rows alone", alone, together)
    return evidence


def _gradient(dtype: torch.dtype, context: Context) -> Evidence:
    """The gradient is zero exactly where the value was zeroed, and passes unchanged elsewhere."""
    (x, threshold, scope) = CATALOGUE["deadzone"].sample(SampleSpec(dtype, "odd", "normal", 3))
    incoming = noise.normal(x.shape, seed=4, device="cpu").to(dtype)
    leaf = x.to(context.device, copy=True).requires_grad_()
    context.backend.ops.deadzone(leaf, threshold, scope).backward(incoming.to(context.device))
    kept = CATALOGUE["deadzone"].reference(x, threshold, scope) != 0
    evidence = Evidence()
    assert leaf.grad is not None  # noqa: S101 -- for the type checker: backward() gave it one
    evidence.equal("gradient", leaf.grad, torch.where(kept, incoming, 0.0))
    return evidence


def _neighbours(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The next smaller and the next larger positive number of the dtype."""
    integer = torch.int32 if x.dtype == torch.float32 else torch.int16
    bits = x.view(integer)
    return (bits - 1).view(x.dtype), (bits + 1).view(x.dtype)


_RULES: tuple[tuple[str, str, Check], ...] = (
    ("mask", "the same elements survive at every threshold, in both scopes", _mask),
    ("ties", "an element equal to the threshold survives, its lower neighbour does not", _ties),
    ("uniform", "all-equal, all-zero, single and empty inputs come back as they were", _uniform_inputs),
    ("nonfinite", "Inf and NaN survive and set no maximum", _nonfinite),
    ("batching", "by token, a row's result does not depend on its neighbours", _batching),
    ("gradient", "the gradient is zero exactly where the value was zeroed", _gradient),
)
