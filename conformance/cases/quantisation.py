"""Fake quantisation at every code point, every middle between two, and the numbers next to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from conformance.case import Case, Context
from conformance.evidence import Evidence
from hal import noise
from hal.ops import CATALOGUE, quantisation
from hal.ops.quantisation_reference import E2M1_CODES, E4M3_CODES, nearest


def cases() -> Iterator[Case]:
    """One case for each format and rule."""
    for name, operator, purpose, check in _RULES:
        yield Case(f"quantisation/{name}", operator, check, purpose, dtype=torch.float32)


def _e2m1(context: Context) -> Evidence:
    """Codes are fixed points, middles go to the even code, neighbours of middles to the nearer one."""
    codes = torch.from_numpy(E2M1_CODES).float()
    middles = (codes[1:] + codes[:-1]) / 2
    # One code of 6 in each block of 32 sets its scale to 1.
    probes = torch.cat((codes, middles, _next(middles, 1), _next(middles, -1)))
    blocks = torch.cat([_block(part, 32, 6.0) for part in torch.split(torch.cat((probes, -probes)), 31)])
    evidence = Evidence()
    evidence.equal("codes and middles", context.call("fake_quantize_mxfp4", blocks), _mxfp4_by_table(blocks))
    return evidence


def _e8m0(context: Context) -> Evidence:
    """At every power of two that can be a scale, and for numbers below the smallest, every code is a fixed point."""
    codes = torch.from_numpy(E2M1_CODES).double()
    row = torch.cat((codes, -codes)).repeat(2)
    scales = torch.exp2(torch.arange(-127, 126, dtype=torch.float64))
    x = (row * scales[:, None]).float()
    evidence = Evidence()
    evidence.equal("codes at every scale", context.call("fake_quantize_mxfp4", x), x)
    tiny = torch.full((1, 32), 2.0**-149)
    evidence.equal("below the smallest scale", context.call("fake_quantize_mxfp4", tiny), torch.zeros(1, 32))
    return evidence


def _e4m3(context: Context) -> Evidence:
    """Every E4M3 scale is a fixed point, and rounding to E4M3 is right at every code, middle and neighbour."""
    scales = torch.from_numpy(E4M3_CODES[1:]).double()
    codes = torch.from_numpy(E2M1_CODES).double()
    x = (torch.cat((codes, -codes)) * scales[:, None]).float()
    evidence = Evidence()
    evidence.equal("every scale", context.call("fake_quantize_nvfp4", x, 1.0), x)
    points = torch.from_numpy(E4M3_CODES).float()
    middles = (points[1:] + points[:-1]) / 2
    probes = torch.cat((points, middles, _next(middles, 1), _next(middles, -1), torch.tensor([449.0, 1e30])))
    rounded = quantisation.round_to_format(probes.to(context.device), 3, -6, quantisation.E4M3_MAX)
    evidence.equal("rounding", rounded, torch.from_numpy(nearest(probes.double().numpy(), E4M3_CODES)))
    return evidence


def _int8(context: Context) -> Evidence:
    """All 255 integers are fixed points; halves go to the even one."""
    integers = torch.arange(-127, 128, dtype=torch.float32)
    halves = torch.cat((torch.arange(-126.5, 127.0), torch.tensor([127.0])))
    evidence = Evidence()
    for scope in ("token", "tensor"):
        evidence.equal(f"integers, {scope}", context.call("fake_quantize_int8", integers[None], scope)[0], integers)
        rounded = context.call("fake_quantize_int8", halves[None], scope)[0]
        evidence.equal(f"halves, {scope}", rounded, torch.round(halves.double()))
    return evidence


def _short_blocks(context: Context) -> Evidence:
    """A block's scale is its own: neither its neighbour nor the padding of a short last block reaches it."""
    x = noise.normal((3, 75), seed=5, device="cpu")
    x[:, :32] *= 1024
    evidence = Evidence()
    for name in ("fake_quantize_mxfp4", "fake_quantize_nvfp4", "fake_quantize_int8"):
        evidence.equal(name, context.call(name, x), CATALOGUE[name].reference(x))
    return evidence


def _straight_through(context: Context) -> Evidence:
    """The gradient is the incoming one, bit for bit."""
    x, incoming = noise.normal((2, 3, 37), seed=6, device="cpu")
    evidence = Evidence()
    for name in ("fake_quantize_mxfp4", "fake_quantize_nvfp4", "fake_quantize_int8"):
        leaf = x.to(context.device, copy=True).requires_grad_()
        context.backend.ops.get(name)(leaf).backward(incoming.to(context.device))
        assert leaf.grad is not None  # noqa: S101 -- for the type checker: backward() gave it one
        evidence.equal(name, leaf.grad, incoming)
    return evidence


def _mxfp4_by_table(blocks: torch.Tensor) -> torch.Tensor:
    """Blocks whose scale is 1, by looking up the nearest code."""
    size = torch.from_numpy(nearest(blocks.abs().double().numpy(), E2M1_CODES))
    return torch.where(blocks < 0, -size, size)


def _block(values: torch.Tensor, size: int, largest: float) -> torch.Tensor:
    """One block of `size` that begins with `largest` and is filled up with zeros."""
    block = torch.zeros(1, size)
    block[0, 0] = largest
    block[0, 1 : 1 + len(values)] = values
    return block


def _next(x: torch.Tensor, step: int) -> torch.Tensor:
    """The neighbouring float32 numbers, away from zero or towards it."""
    return (x.view(torch.int32) + step).view(torch.float32)


_RULES: tuple[tuple[str, str, str, Callable[[Context], Evidence]], ...] = (
    ("e2m1", "fake_quantize_mxfp4", "every E2M1 code is kept, middles go to the even code", _e2m1),
    ("e8m0", "fake_quantize_mxfp4", "every E8M0 scale is reached and exact", _e8m0),
    ("e4m3", "fake_quantize_nvfp4", "every E4M3 scale is reached, rounding to E4M3 is to nearest even", _e4m3),
    ("int8", "fake_quantize_int8", "every integer is kept, halves go to the even one", _int8),
    ("blocks", "fake_quantize", "blocks have scales of their own, a short last one too", _short_blocks),
    ("gradient", "fake_quantize", "the gradient passes straight through", _straight_through),
)
