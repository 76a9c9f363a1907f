"""How devices are known to compute differently: precision, order, repeatability, overflow, subnormals."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from conformance.case import Context
from conformance.evidence import Evidence, require
from hal import noise
from hal.ops import CATALOGUE, SampleSpec, error_bound
from hal.ops.precision import ACCUMULATION, FLUSH, host64

# Halves and tenths of the smallest normal number, even so that half of each is exact.
SUBNORMAL_BITS = (0x00400000, 0x000CCCCC, 0x00002000, 0x00000002)


def full_precision(context: Context) -> Evidence:
    """float32 products and convolutions keep float32's bits while the exact numeric mode is on. A shorter input format
    (10 or 11 bits) is 2**8 times and more beyond the allowance.
    """
    evidence = Evidence(facts=dict(context.backend.numeric_switches()))
    a, b = noise.normal((2, 64, 64), seed=1, device="cpu")
    evidence.within("matmul", context.call("matmul", a, b), host64(a) @ host64(b), _terms(a, b) * ACCUMULATION)
    image = noise.normal((2, 3, 16, 16), seed=2, device="cpu")
    kernel = noise.normal((4, 3, 3, 3), seed=3, device="cpu")
    result = functional.conv2d(image.to(context.device), kernel.to(context.device))
    size = functional.conv2d(host64(image).abs(), host64(kernel).abs())
    evidence.within("conv2d", result, functional.conv2d(host64(image), host64(kernel)), size * ACCUMULATION)
    return evidence


def summation_order(context: Context) -> Evidence:
    """Products of any length stay within a bound of their partial sums, also where the result cancels."""
    evidence = Evidence()
    for length in (64, 128, 1024, 4096):
        a = noise.normal((8, length), seed=length, device="cpu")
        b = noise.normal((length, 8), seed=length + 1, device="cpu")
        growth = max(1.0, math.sqrt(length) / 4)
        allowance = _terms(a, b) * growth * ACCUMULATION
        evidence.within(f"K = {length}", context.call("matmul", a, b), host64(a) @ host64(b), allowance)
        # Every product again with the other sign: the exact result is zero, whatever the partial sums were.
        left, right = torch.cat((a, -a), 1), torch.cat((b, b), 0)
        result = context.call("matmul", left, right)
        evidence.within(f"K = {2 * length}, cancelling", result, torch.zeros(8, 8), 2 * math.sqrt(2) * allowance)
    return evidence


def repeatability(context: Context) -> Evidence:
    """In deterministic mode the same call gives the same bits, five times."""
    evidence = Evidence()
    for name, work in _repeated(context).items():
        first = work().cpu()
        for attempt in range(2, 6):
            evidence.same(f"{name}, run {attempt}", work(), first)
    return evidence


def _repeated(context: Context) -> dict[str, Callable[[], torch.Tensor]]:
    """What is documented to vary from run to run unless asked not to."""
    x = noise.normal((64, 256), seed=4, device=context.device)
    weight = noise.normal((256, 96), seed=5, device=context.device)
    places = noise.integers((4096,), 0, 50, seed=6, device=context.device)
    values = noise.normal((4096,), seed=7, device=context.device)

    def embedding_gradient() -> torch.Tensor:
        table = torch.zeros(50, 8, device=context.device, requires_grad=True)
        torch.autograd.backward(functional.embedding(places, table).mul(values[:, None]).sum())
        assert table.grad is not None  # noqa: S101 -- for the type checker: backward() gave it one
        return table.grad

    return {
        "matmul": lambda: x @ weight,
        "bmm": lambda: torch.bmm(x.view(4, 16, 256), weight.expand(4, 256, 96)),
        "addmm": lambda: torch.addmm(x[:, :96], x, weight),
        "sum": x.sum,
        "mean": lambda: x.mean(0),
        "layer_norm": lambda: functional.layer_norm(x, (256,)),
        "softmax": lambda: functional.softmax(x, -1),
        "cumsum": lambda: x.cumsum(0),
        "index_put": lambda: torch.zeros(50, device=context.device).index_put((places,), values, accumulate=True),
        "embedding gradient": embedding_gradient,
    }


def batch_invariance(context: Context) -> Evidence:
    """One row alone is as near to float64 as the same row in a batch; whether it has the same bits is recorded."""
    evidence = Evidence()
    for name in ("linear", "rms_norm", "layer_norm", "softmax", "attention"):
        arguments = CATALOGUE[name].sample(SampleSpec(torch.float32, "odd", "normal", 5))
        together = context.call(name, *arguments).cpu()
        alone_arguments = _first_of_batch(name, arguments)
        alone = context.call(name, *alone_arguments).cpu()
        reference = CATALOGUE[name].reference(*alone_arguments)
        allowance = error_bound(CATALOGUE[name], alone_arguments, torch.float32, (reference,))[0]
        evidence.within(f"{name} alone", alone, reference, allowance)
        evidence.facts[f"{name}: same bits alone and in a batch"] = str(torch.equal(alone, together[:1]))
    return evidence


def _first_of_batch(name: str, arguments: tuple[object, ...]) -> tuple[object, ...]:
    """The arguments of a call for the first batch entry only; weights have no batch."""
    batched = 4 if name == "attention" else 1
    return tuple(
        value[:1] if index < batched and isinstance(value, torch.Tensor) else value
        for index, value in enumerate(arguments)
    )


def overflow(context: Context) -> Evidence:
    """What overflows is Inf and what is undefined is NaN: a device that saturates hides both."""
    evidence = Evidence()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        if dtype not in context.backend.dtypes:
            continue
        largest = torch.finfo(dtype).max
        x = torch.tensor([largest, -largest, 1.0, 0.0], dtype=dtype, device=context.device)
        for name, result, expected in (
            ("twice the largest", x * 2, [math.inf, -math.inf, 2.0, 0.0]),
            ("exponential", torch.exp(x), [math.inf, 0.0, math.e, 1.0]),
            ("square root", torch.sqrt(x)[1:], [math.nan, 1.0, 0.0]),
            ("logarithm", torch.log(x)[1:], [math.nan, 0.0, -math.inf]),
            ("division", (x / 0)[[0, 1, 3]], [math.inf, -math.inf, math.nan]),
            ("a product of rows", x[:1].view(1, 1) @ x[:1].view(1, 1), [[math.inf]]),
        ):
            wanted = torch.tensor(expected, dtype=torch.float64)
            allowance = wanted.abs().nan_to_num(0.0, 0.0) * torch.finfo(dtype).eps
            evidence.within(f"{name}, {dtype}".replace("torch.", ""), result, wanted, allowance)
    return evidence


def subnormals(context: Context) -> Evidence:
    """float32 numbers below 2**-126 take part in arithmetic. Where they are flushed the message says in which
    operators: such a device agrees with others only to within that number.
    """
    x = _from_bits(*SUBNORMAL_BITS).to(context.device)
    smallest = _from_bits(0x00800000).to(context.device)
    # Bit patterns, and Python's own numbers: this process may flush as well.
    exact = {
        "copy": (x.clone(), SUBNORMAL_BITS),
        "addition": (x + x, [2 * bits for bits in SUBNORMAL_BITS]),
        "product": (x * 0.5, [bits // 2 for bits in SUBNORMAL_BITS]),
        "product of normal numbers": (smallest * 0.5, [0x00400000]),
        "division": (x / 2, [bits // 2 for bits in SUBNORMAL_BITS]),
        "comparison": ((x > 0).to(torch.int32), [1] * len(SUBNORMAL_BITS)),
    }
    lost = [name for name, (result, bits) in exact.items() if _bits(result) != list(bits)]
    values = [math.ldexp(bits, -149) for bits in SUBNORMAL_BITS]
    normal = {
        "square root": (torch.sqrt(x), [math.sqrt(value) for value in values]),
        "logarithm": (torch.log(x), [math.log(value) for value in values]),
        "exponential": (torch.exp(torch.full_like(x, -88.0)) * 2.0**30, [math.exp(-88.0) * 2.0**30] * len(values)),
    }
    for name, (result, wanted) in normal.items():
        if not all(math.isclose(got, aim, rel_tol=2.0**-10) for got, aim in zip(result.tolist(), wanted, strict=True)):
            lost.append(name)
    require(not lost, f"subnormal float32 numbers are flushed in: {', '.join(lost)}")
    return Evidence(facts={"flushed": "nowhere"})


def _from_bits(*patterns: int) -> torch.Tensor:
    return torch.tensor(patterns, dtype=torch.int32).view(torch.float32)


def _bits(result: torch.Tensor) -> list[int]:
    patterns: list[int] = result.cpu().view(torch.int32).tolist()
    return patterns


def _terms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of the sizes of a product's terms."""
    return host64(a).abs() @ host64(b).abs() + FLUSH
