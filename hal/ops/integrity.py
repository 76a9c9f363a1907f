"""Has a tensor changed, and is a matrix product right: digest and checksum."""

from __future__ import annotations

import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from hal import noise
from hal.errors import UsageError
from hal.ops.catalogue import Arguments, Op, register
from hal.ops.precision import ACCUMULATION, host64
from hal.ops.sampling import SampleSpec

# A row's sum of 16-bit pieces times 31-bit weights stays below 2**62.
_ROW = 1 << 15
_PIECES_AT_ONCE = {"cpu": 2 * _ROW}
_PIECES_ON_DEVICE = 512 * _ROW

# A float32 rounding errs by at most this share of its result; its variance is a third of the square.
_ROUNDING = 2.0**-24
# Roundings an element passes in a blocked or pairwise sum.
_SUM_ROUNDINGS = 32


@torch.no_grad()
def tensor_digest(x: torch.Tensor) -> int:
    """A 63-bit digest of `x`'s dtype, shape and raw bits in row-major order, the same on every device: per row of
    32768 pieces of 16 bits a sum weighted by position, in integers on the device, then BLAKE2b over the sums on the
    host. A single changed piece, or two that swap places, always change their sum. Zeros of different sign, and NaNs
    of different payload, differ. Complex and quantised dtypes are a UsageError. Waits for the device.
    """
    pieces = _pieces(x)
    size = _PIECES_AT_ONCE.get(x.device.type, _PIECES_ON_DEVICE)
    sums = [_row_sums(part) for part in torch.split(pieces, size)]
    state = hashlib.blake2b(f"{x.dtype}{tuple(x.shape)}".encode(), digest_size=8)
    state.update(torch.cat(sums).cpu().numpy().astype("<i8").tobytes())
    return int.from_bytes(state.digest(), "little") >> 1


class Checksum(NamedTuple):
    """Per row of a product, float32: `residual`, the row's sum less the sum it should have, and `bound`, the largest
    size that rounding explains.
    """

    residual: torch.Tensor
    bound: torch.Tensor

    @property
    def exceeded(self) -> torch.Tensor:
        """Rows whose residual rounding does not explain, non-finite ones included; boolean."""
        return ~(self.residual.isfinite() & (self.residual.abs() <= self.bound))


@torch.no_grad()
def matmul_checksum(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    bias: torch.Tensor | None = None,
    sigmas: float = 6.0,
) -> Checksum:
    """Check `y` [..., N] = `x` [..., K] @ `weight` [N, K].T + `bias` [N] by its row sums: sum_j y_ij against x_i .
    sum_j W_jk + sum_j b_j (Huang and Abraham, 1984). The bound is `sigmas` standard deviations of the rounding error,
    taken as independent roundings (the variance-based bound of V-ABFT, arXiv 2602.08043): those of y to its dtype,
    which may flush its subnormal numbers, of the float32 accumulation of K terms one after another, and of the check's
    own blocked sums. float32, without a matrix product, so no reduced-precision mode of the matrix units reaches it.
    """
    x_, weight_, y_ = x.float(), weight.float(), y.float()
    offset = torch.zeros(1, device=y.device) if bias is None else bias.float()
    terms = x_ * weight_.sum(0)
    residual = y_.sum(-1) - terms.sum(-1) - offset.sum()
    return Checksum(residual, sigmas * _deviation(x_, weight_, y_, offset, torch.finfo(y.dtype)))


def _deviation(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, limits: torch.finfo
) -> torch.Tensor:
    """Standard deviation of the rounding error of a row's residual, in the arguments' dtype."""
    column, square = weight.sum(0), weight.square().sum(0)
    accumulated = x.shape[-1] * partial_sums(y.square().sum(-1), (x.square() * square).sum(-1))
    checked = (
        partial_sums(y.sum(-1).square(), y.square().sum(-1))
        + partial_sums((x * column).sum(-1).square(), (x * column).square().sum(-1))
        + (x.square() * partial_sums(column.square(), square)).sum(-1)
        + partial_sums(bias.sum().square(), bias.square().sum())
    )
    # A subnormal result may be flushed to zero.
    lost = torch.where(y.abs() < limits.smallest_normal, limits.smallest_normal, limits.eps / 2 * y)
    rounded = lost.square().sum(-1)
    return ((rounded + _ROUNDING**2 * (accumulated + _SUM_ROUNDINGS * checked)) / 3).sqrt()


def partial_sums(total: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
    """Mean square of the partial sums on the way to a sum: a drift to the total, squared, and a random walk of the
    terms, whose squares' sum is given.
    """
    return total / 3 + terms / 2


def _pieces(x: torch.Tensor) -> torch.Tensor:
    """The tensor's bits, in pieces of 16 or, for narrower dtypes, 8 bits."""
    if x.is_complex() or x.is_quantized or x.layout != torch.strided:
        raise UsageError(f"digest of a {x.layout} tensor of dtype {x.dtype}: give a dense real one")
    flat = x.detach().contiguous().view(-1)
    return flat.view(torch.int16 if x.element_size() > 1 else torch.int8)


def _row_sums(pieces: torch.Tensor) -> torch.Tensor:
    short = -pieces.numel() % _ROW
    rows = functional.pad(pieces, (0, short)).view(-1, _ROW)
    return ((rows.to(torch.int64) & 0xFFFF) * _weights(pieces.device)).sum(-1)


@functools.cache
def _weights(device: torch.device) -> torch.Tensor:
    """Different for every place, and none zero: sixteen random bits above the fifteen of the place."""
    with torch.inference_mode(False):
        random = noise.bits(_ROW, seed=0, stream=noise.stream_key("tensor digest"), device=device)
        return (((random & 0xFFFF) | 1) << 15) | torch.arange(_ROW, device=device)


def _digest_reference(x: torch.Tensor) -> int:
    """The same digest in numpy's unsigned integers."""
    host = x.detach().cpu().contiguous()
    width = np.dtype("<u2") if host.element_size() > 1 else np.dtype("u1")
    raw = host.view(-1).view(torch.uint8).numpy().view(width).astype(np.uint64)
    weights = _weights(torch.device("cpu")).numpy().astype(np.uint64)
    sums = [int((raw[i : i + _ROW] * weights[: len(raw) - i]).sum()) for i in range(0, max(1, len(raw)), _ROW)]
    state = hashlib.blake2b(f"{x.dtype}{tuple(x.shape)}".encode(), digest_size=8)
    state.update(np.array(sums, dtype="<i8").tobytes())
    return int.from_bytes(state.digest(), "little") >> 1


def _checksum_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    bias: torch.Tensor | None = None,
    sigmas: float = 6.0,
) -> Checksum:
    x_, weight_, y_ = host64(x), host64(weight), host64(y)
    offset = torch.zeros(1, dtype=torch.float64) if bias is None else host64(bias)
    residual = (y_ - offset).sum(-1) - (x_ @ weight_.T).sum(-1)
    return Checksum(residual, sigmas * _deviation(x_, weight_, y_, offset, torch.finfo(y.dtype)))


def _checksum_scale(*arguments: Any) -> Checksum:
    """The check's own rounding is part of its bound."""
    bound = _checksum_reference(*arguments).bound
    return Checksum(bound / ACCUMULATION, bound)


def _sample_digest(spec: SampleSpec) -> Arguments:
    return (spec.data("x", *spec.pick(tiny=(2, 8), odd=(3, 5, 37), large=(64, 1027))),)


def _sample_checksum(spec: SampleSpec) -> Arguments:
    rows, k, n = spec.pick(tiny=(2, 8, 4), odd=(3, 37, 5), large=(64, 512, 96))
    # y is drawn, not computed, so that it too is the same bits everywhere; squares must not overflow.
    x = spec.data("x", rows, k, headroom=6, limit=48)
    return x, spec.projection("weight", n, k, inputs=k), spec.data("y", rows, n, headroom=6, limit=48)


TENSOR_DIGEST = register(
    Op(
        "tensor_digest",
        "tensor_digest(x[...]) -> int",
        tensor_digest,
        _digest_reference,
        _sample_digest,
        differentiable=False,
        exact=True,
    )
)
MATMUL_CHECKSUM = register(
    Op(
        "matmul_checksum",
        "matmul_checksum(x[..., K], weight[N, K], y[..., N], bias[N] | None = None, sigmas: float = 6) "
        "-> (residual[...], bound[...])",
        matmul_checksum,
        _checksum_reference,
        _sample_checksum,
        differentiable=False,
        error_scale=_checksum_scale,
    )
)
