"""Noise added to a tensor: relative to each element's size, or of one size everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch

from hal import noise
from hal.errors import UsageError
from hal.noise import Mode
from hal.ops.catalogue import Arguments, Op, register
from hal.ops.precision import host64
from hal.ops.sampling import SampleSpec


def relative_noise(
    x: torch.Tensor,
    sigma: float,
    seed: int,
    stream: int = 0,
    start: int = 0,
    mode: Mode = "exact",
) -> torch.Tensor:
    """`x + sigma * abs(x) * e` with e the elements `start`, `start + 1`, … of the standard normal stream (`seed`,
    `stream`) of `hal.noise`, x of any shape read in row-major order. float32 inside, each operation rounded by itself,
    and one rounding to x's dtype, so exact mode gives the same bits wherever float32 is IEEE. Its gradient is `1 +
    sigma * sign(x) * e`, from noise that is drawn again instead of kept. A negative or non-finite sigma is a
    UsageError.
    """
    _check(sigma)
    return cast(torch.Tensor, _RelativeNoise.apply(x, sigma, (seed, stream, start, mode)))  # type: ignore[no-untyped-call]  # torch's


def additive_noise(
    x: torch.Tensor,
    sigma: float,
    seed: int,
    stream: int = 0,
    start: int = 0,
    mode: Mode = "exact",
) -> torch.Tensor:
    """`x + sigma * e`, e as in `relative_noise`; the gradient passes unchanged."""
    _check(sigma)
    return cast(torch.Tensor, _AdditiveNoise.apply(x, sigma, (seed, stream, start, mode)))  # type: ignore[no-untyped-call]  # torch's


@torch.no_grad()
def relative_noise_(
    x: torch.Tensor,
    sigma: float,
    seed: int,
    stream: int = 0,
    start: int = 0,
    mode: Mode = "exact",
) -> torch.Tensor:
    """`relative_noise` written into `x` itself, which is returned: for an operator's fresh output outside training,
    where it saves a tensor. A tensor that is not contiguous, or needs a gradient, is a UsageError.
    """
    _check(sigma)
    if x.requires_grad or not x.is_contiguous():
        raise UsageError("in-place noise on a tensor that needs a gradient or has strides: use relative_noise")
    flat = x.view(-1)
    _write_relative(flat, flat, sigma, (seed, stream, start, mode))
    return x


_Key = tuple[int, int, int, Mode]


class _RelativeNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sigma: float, key: _Key) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.sigma, ctx.key = sigma, key
        return _write_relative(x.reshape(-1), x.new_empty(x.numel()), sigma, key).view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,) = ctx.saved_tensors
        flat, incoming, out = x.reshape(-1), gradient.reshape(-1), gradient.new_empty(x.numel())
        for place, draw in _draws(x, ctx.key):
            factor = draw.mul_(ctx.sigma).mul_(flat[place].float().sign()).add_(1.0)
            out[place] = factor.mul_(incoming[place].float())
        return out.view(x.shape), None, None


class _AdditiveNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sigma: float, key: _Key) -> torch.Tensor:
        flat, out = x.reshape(-1), x.new_empty(x.numel())
        for place, draw in _draws(x, key):
            out[place] = draw.mul_(sigma).add_(flat[place].float())
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient, None, None


def _write_relative(flat: torch.Tensor, out: torch.Tensor, sigma: float, key: _Key) -> torch.Tensor:
    for place, draw in _draws(flat, key):
        values = flat[place].float()
        if key[3] == "fast" and out.dtype == torch.float32:
            torch.addcmul(values, draw, values.abs(), value=sigma, out=out[place])
        else:  # one kernel an operation, so that no device fuses two and rounds once less
            out[place] = draw.mul_(sigma).mul_(values.abs()).add_(values)
    return out


def _draws(x: torch.Tensor, key: _Key) -> Iterator[tuple[slice, torch.Tensor]]:
    """Noise for pieces of `x` small enough for a cache, so that each is drawn, used and written in one visit."""
    seed, stream, start, mode = key
    size = noise.chunk_elements(x.device)
    for begin in range(0, x.numel(), size):
        end = min(begin + size, x.numel())
        yield (
            slice(begin, end),
            noise.normal(end - begin, seed=seed, stream=stream, start=start + begin, device=x.device, mode=mode),
        )


def _check(sigma: float) -> None:
    if not (math.isfinite(sigma) and sigma >= 0):
        raise UsageError(f"noise sigma is {sigma}: give a finite number that is not negative")


def _reference_draw(x: torch.Tensor, seed: int, stream: int, start: int) -> torch.Tensor:
    """Exact noise is defined bit for bit, so the host's own is the reference."""
    return noise.normal(x.shape, seed=seed, stream=stream, start=start, device="cpu", dtype=torch.float64)


def _relative_reference(x: torch.Tensor, sigma: float, seed: int, stream: int = 0, start: int = 0) -> torch.Tensor:
    wide = host64(x)
    return wide + sigma * wide.abs() * _reference_draw(x, seed, stream, start)


def _relative_scale(x: torch.Tensor, sigma: float, seed: int, stream: int = 0, start: int = 0) -> torch.Tensor:
    return host64(x).abs() * (1 + sigma * _reference_draw(x, seed, stream, start).abs())


def _additive_reference(x: torch.Tensor, sigma: float, seed: int, stream: int = 0, start: int = 0) -> torch.Tensor:
    return host64(x) + sigma * _reference_draw(x, seed, stream, start)


def _additive_scale(x: torch.Tensor, sigma: float, seed: int, stream: int = 0, start: int = 0) -> torch.Tensor:
    return host64(x).abs() + sigma * _reference_draw(x, seed, stream, start).abs()


def _sample(spec: SampleSpec) -> Arguments:
    shape = spec.pick(tiny=(2, 8), odd=(3, 5, 37), large=(64, 1024))
    return spec.data("x", *shape, headroom=2), 0.05, spec.seed, 17, 5


_SIGNATURE = "(x[...], sigma: float, seed: int, stream: int = 0, start: int = 0) -> [...]"

RELATIVE_NOISE = register(
    Op(
        "relative_noise",
        "relative_noise" + _SIGNATURE,
        relative_noise,
        _relative_reference,
        _sample,
        error_scale=_relative_scale,
    )
)
ADDITIVE_NOISE = register(
    Op(
        "additive_noise",
        "additive_noise" + _SIGNATURE,
        additive_noise,
        _additive_reference,
        _sample,
        error_scale=_additive_scale,
    )
)
