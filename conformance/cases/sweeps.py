"""All 65,536 inputs of a 16-bit dtype through elementwise functions and conversions: nothing is left to chance."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from conformance.case import Case, Context
from conformance.evidence import Evidence
from conformance.formats import short
from hal.ops import CATALOGUE, Op, SampleSpec, error_bound
from hal.ops.precision import ACCUMULATION, FLUSH

Function = Callable[[torch.Tensor], torch.Tensor]

DTYPES = (torch.float16, torch.bfloat16)
OPERATORS = ("silu", "gelu", "gelu_tanh", "clamp")
# Functions below the catalogue's operators. Each is the device's own kernel, called as model code calls it.
FUNCTIONS: dict[str, Function] = {
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
}
_SMALLEST_NORMAL = 2.0**-126


def cases() -> Iterator[Case]:
    """One case for each function and 16-bit dtype, and one for each conversion."""
    for dtype in DTYPES:
        for name in OPERATORS:
            yield _case(name, dtype, functools.partial(_check_operator, CATALOGUE[name], dtype))
        for name, function in FUNCTIONS.items():
            yield _case(name, dtype, functools.partial(_check_function, name, function, dtype))
        yield _case("widening", dtype, functools.partial(_check_widening, dtype))
        yield _case("rounding", dtype, functools.partial(_check_rounding, dtype))


def _case(name: str, dtype: torch.dtype, check: Callable[[Context], Evidence]) -> Case:
    purpose = {
        "widening": f"every {short(dtype)} number becomes the same number in float32",
        "rounding": f"float32 is rounded to {short(dtype)} to nearest, ties to even, at every boundary",
    }.get(name, f"{name} of every {short(dtype)} number is right within rounding")
    return Case(f"sweeps/{name}/{short(dtype)}", name, check, purpose, dtype)


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 bit patterns of a 16-bit floating dtype, on the host."""
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32, device="cpu").to(torch.int16).view(dtype)


def _check_operator(op: Op, dtype: torch.dtype, context: Context) -> Evidence:
    _, *options = op.sample(SampleSpec(dtype))
    arguments = (every_number(dtype), *options)
    evidence = Evidence()
    result, reference = context.call(op.name, *arguments), op.reference(*arguments)
    if op.exact:
        evidence.equal("result", result, reference)
    else:
        evidence.within("result", result, reference, error_bound(op, arguments, dtype, (reference,))[0])
    return evidence


def _check_function(name: str, function: Function, dtype: torch.dtype, context: Context) -> Evidence:
    x = every_number(dtype)
    result = function(x.to(context.device)).cpu()
    expected = function(x.double())
    at_zero = function(torch.zeros((), dtype=torch.float64).copysign(x.double()))
    # Below float32's normal numbers a device may take its input for zero; that it does is told by differences/18.
    flushed = (x.double().abs() < _SMALLEST_NORMAL) & (
        (result.double() == at_zero) | (result.isnan() & at_zero.isnan())
    )
    expected = torch.where(flushed, at_zero, expected)
    info = torch.finfo(dtype)
    # Two units of float32 for the function, half a unit of the dtype for the result.
    size = expected.abs().nan_to_num(0.0, 0.0)
    evidence = Evidence(facts={"subnormal inputs taken for zero": str(int((flushed & (x != 0)).sum()))})
    allowance = size * (info.eps / 2 + 2 * torch.finfo(torch.float32).eps)
    allowance = allowance + max(info.smallest_normal * info.eps / 2, FLUSH)
    # What uses erf adds it to one: it is judged by its range, as rounding of that sum is.
    evidence.within("result", result, expected, allowance + (ACCUMULATION if name == "erf" else 0.0))
    return evidence


def _check_widening(dtype: torch.dtype, context: Context) -> Evidence:
    x = every_number(dtype)
    evidence = Evidence()
    evidence.equal("result", x.to(context.device).float(), _from_fields(x))
    return evidence


def _check_rounding(dtype: torch.dtype, context: Context) -> Evidence:
    """Every finite number of the dtype, every middle between neighbours, and the float32 next to each."""
    numbers = torch.arange(1 << 15, dtype=torch.int32, device="cpu")
    below = numbers.to(torch.int16).view(dtype).float()
    above = torch.cat((below[1:], below[-1:]))
    finite = below.isfinite() & above.isfinite()
    middle = ((below.double() + above.double()) / 2).float()[finite]
    bits = torch.cat((below[finite], middle)).view(torch.int32)
    around = torch.cat((bits, bits + 1, (bits - 1).clamp(min=0))).view(torch.float32)
    x = torch.cat((around, -around))
    evidence = Evidence()
    evidence.equal("result", x.to(context.device).to(dtype), _nearest_even(x, dtype))
    return evidence


def _from_fields(x: torch.Tensor) -> torch.Tensor:
    """The value that a bit pattern means, from its fields, in float64."""
    width, bias = (10, 15) if x.dtype == torch.float16 else (7, 127)
    bits = x.view(torch.int16).to(torch.int64) & 0xFFFF
    significand, field = bits & ((1 << width) - 1), (bits & 0x7FFF) >> width
    normal = (1 + significand.double() * 2.0**-width) * torch.exp2((field - bias).double())
    subnormal = significand.double() * 2.0 ** (1 - bias - width)
    value = torch.where(field == 0, subnormal, normal)
    special = torch.where(significand == 0, float("inf"), float("nan"))
    value = torch.where(field == 2 * bias + 1, special, value)
    return torch.where(bits >> 15 == 1, -value, value)


def _nearest_even(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x`, float32, rounded to nearest, ties to even, by arithmetic in float64: the spacing of the target at x is an
    exact power of two, and so is the division by it.
    """
    info = torch.finfo(dtype)
    wide = x.double()
    exponent = (torch.frexp(wide.abs()).exponent - 1).double()
    lowest = torch.frexp(torch.tensor(info.smallest_normal, dtype=torch.float64)).exponent.double() - 1
    spacing = torch.exp2(exponent.clamp(min=lowest)) * info.eps
    rounded = torch.round(wide / spacing) * spacing
    return torch.where(rounded.abs() > info.max, torch.sign(wide) * float("inf"), rounded)
