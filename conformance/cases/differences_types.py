"""How devices are known to treat types and memory differently: wide floats, large integers, layouts, fresh memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from conformance.case import Context
from conformance.evidence import Evidence, require
from conformance.formats import short
from hal import noise
from hal.ops.precision import ACCUMULATION, host64

Work = Callable[[torch.Tensor], torch.Tensor]

_LARGE = 1 << 24  # beyond it float32 does not hold every integer


def wide_floats(context: Context) -> Evidence:
    """float64 data come back from the device with all their bits. Arithmetic is float64 where the backend declares it;
    elsewhere the suite never asks for it, and what a conversion gives is recorded.
    """
    wide = torch.tensor([1 / 3, 2.0**-60, 1 + 2.0**-52], dtype=torch.float64)
    evidence = Evidence()
    x = torch.ones(3, device=context.device)
    evidence.facts["x.double() is"] = short(x.double().dtype)
    if torch.float64 in context.backend.dtypes:
        evidence.equal("copied", wide.to(context.device), wide)
        require(x.double().dtype == torch.float64, f"float64 is declared and x.double() is {short(x.double().dtype)}")
        a, b = noise.normal((2, 16, 16), seed=1, device="cpu").double()
        scale = a.abs() @ b.abs() * 2.0**-46
        evidence.within("product", a.to(context.device) @ b.to(context.device), a @ b, scale)
    return evidence


def dtype_table(context: Context) -> Evidence:
    """Every declared dtype is what operators return and computes as one; which operators lack float64 is recorded."""
    evidence = Evidence()
    for dtype in context.backend.dtypes:
        name = short(dtype)
        host = noise.normal((9, 9), seed=2, device="cpu").to(dtype)
        x = host.to(context.device)
        for what, result in {
            "creation": torch.zeros(2, dtype=dtype, device=context.device),
            "addition": x + x,
            "product": x @ x,
            "conversion": x.float().to(dtype),
            "sorting": x.sort(-1).values,
        }.items():
            require(result.dtype == dtype, f"{what} of {name} gives {short(result.dtype)}")
        evidence.equal(f"{name}, copied", x, host)
        evidence.equal(f"{name}, sorted", x.sort(-1).values, host.sort(-1).values)
        evidence.equal(f"{name}, repeated", x.repeat_interleave(3, 0), host.repeat_interleave(3, 0))
        expected = torch.expm1(host.double())
        allowance = expected.abs() * torch.finfo(dtype).eps + 2.0**-23
        evidence.within(f"{name}, expm1", torch.expm1(x), expected, allowance)
    return evidence


def large_integers(context: Context) -> Evidence:
    """Integers beyond 2**24 keep all their bits in what ids go through: arithmetic, comparison, lookup, sorting."""
    numbers = [_LARGE - 1, _LARGE + 1, _LARGE + 3, (1 << 31) - 1, -_LARGE - 1]
    host = torch.tensor(numbers, dtype=torch.int64)
    ids = host.to(context.device)
    evidence = Evidence()
    # What is right is said by Python's integers: the host's own operators are among those that are asked.
    for name, result, expected in (
        ("addition", ids + 2, [n + 2 for n in numbers]),
        ("product", ids * 3, [n * 3 for n in numbers]),
        ("remainder", ids % 1000, [n % 1000 for n in numbers]),
        ("comparison", (ids == _LARGE + 1).long(), [int(n == _LARGE + 1) for n in numbers]),
        ("sorting", ids.sort().values, sorted(numbers)),
        ("gathering", ids.gather(0, ids % 5), [numbers[n % 5] for n in numbers]),
        ("largest", ids.max(), max(numbers)),
        ("int32", ids.to(torch.int32), numbers),
        ("shift", ids >> 3, [n >> 3 for n in numbers]),
        ("choice", torch.where(ids > 0, ids, -ids), [abs(n) for n in numbers]),
        ("sum", ids.sum(), sum(numbers)),
    ):
        evidence.equal(name, result, torch.tensor(expected))
    # Documented to lose bits on some devices and used nowhere here: recorded.
    doubtful: dict[str, Work] = {
        "cummin of int32": lambda x: x.to(torch.int32).cummin(0).values,
        "threshold of int64": lambda x: functional.threshold(x, 0, 0),
    }
    for name, work in doubtful.items():
        evidence.facts[f"{name} is exact"] = _same_as_host(work, host, context.device)
    return evidence


def memory_layout(context: Context) -> Evidence:
    """Strided views, transposed weights, in-place copies into slices, and single rows and columns are what they are on
    the host, whatever format the device keeps a tensor in.
    """
    weight = noise.normal((48, 33), seed=3, device="cpu")
    moved = weight.to(context.device)
    evidence = Evidence()
    evidence.equal("transposed", moved.T, weight.T)
    evidence.equal("transposed and packed", moved.T.contiguous(), weight.T.contiguous())
    evidence.equal("every third column", moved[:, ::3], weight[:, ::3])
    evidence.equal("a window", moved.narrow(1, 5, 7), weight.narrow(1, 5, 7))
    evidence.equal("viewed anew", moved.reshape(-1, 16), weight.reshape(-1, 16))
    target = torch.zeros(50, 40, device=context.device)
    target[1:49, 4:37].copy_(moved)
    expected = torch.zeros(50, 40)
    expected[1:49, 4:37] = weight
    evidence.equal("copied into a slice", target, expected)
    for rows, inner, columns in ((1, 33, 48), (5, 1, 7), (5, 33, 1), (1, 1, 1)):
        x, y = noise.normal((rows, inner), seed=4, device="cpu"), noise.normal((columns, inner), seed=5, device="cpu")
        allowance = (host64(x).abs() @ host64(y).T.abs()) * 2 * ACCUMULATION
        result = functional.linear(x.to(context.device), y.to(context.device))
        evidence.within(f"linear {rows} x {inner} x {columns}", result, host64(x) @ host64(y).T, allowance)
    # A weight synchronised after its first use, as rollout engines do.
    layer = torch.nn.Linear(33, 48, bias=False).to(context.device)
    x = noise.normal((3, 33), seed=6, device="cpu")
    with torch.no_grad():
        layer(x.to(context.device))
        layer.weight.copy_(weight)
        result = layer(x.to(context.device))
    evidence.equal("the weight after synchronisation", layer.weight.detach(), weight)
    allowance = (host64(x).abs() @ host64(weight).T.abs()) * 2 * ACCUMULATION
    evidence.within("linear after synchronisation", result, host64(x) @ host64(weight).T, allowance)
    return evidence


def fresh_memory(context: Context) -> Evidence:
    """No operator depends on what fresh memory holds: memory is filled with NaN, given back, and used again."""
    evidence = Evidence()
    x = noise.normal((64, 64), seed=7, device="cpu")
    moved = x.to(context.device)
    works: dict[str, Work] = {
        "padding": lambda t: functional.pad(t, (3, 5)),
        "softmax": lambda t: functional.softmax(t, -1),
        "scatter": lambda t: torch.zeros_like(t).scatter(1, (t > 0).long(), t),
        "concatenation": lambda t: torch.cat((t, t)),
        "product": lambda t: t @ t,
        "sum": lambda t: t.sum(-1),
    }
    for name, work in works.items():
        clean = work(moved).cpu()
        for _ in range(3):
            poison = [torch.full_like(work(moved), float("nan")) for _ in range(4)]
            del poison
            evidence.same(f"{name} after NaN", work(moved), clean)
    fresh = torch.empty(1024, device=context.device)
    evidence.facts["fresh memory in deterministic mode"] = (
        "NaN" if bool(fresh.isnan().all()) else "zero" if not bool(fresh.any()) else "whatever was there"
    )
    return evidence


def _same_as_host(work: Work, host: torch.Tensor, device: torch.device) -> str:
    """Whether the device gives the host's result; it may refuse as well."""
    try:
        return str(torch.equal(work(host.to(device)).cpu(), work(host)))
    except (RuntimeError, NotImplementedError) as error:
        return f"refused ({type(error).__name__})"
