"""The public functions: normal, uniform and integer noise, by shape or by element index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from hal.errors import UsageError
from hal.noise.fast import fast_normal
from hal.noise.inverse_cdf import normal_from_bits
from hal.noise.layout import Layout, Source, Transform, fill, fill_at
from hal.noise.streams import stream_key

Mode = Literal["exact", "fast"]
Shape = Sequence[int] | int
Device = torch.device | str | int | None

_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def normal(
    shape: Shape,
    *,
    seed: int,
    stream: int = 0,
    start: int = 0,
    row_stride: int | None = None,
    device: Device = None,
    dtype: torch.dtype = torch.float32,
    mode: Mode = "exact",
) -> torch.Tensor:
    """Standard normal noise of `shape`: elements `start`, `start + 1`, … of the stream (`seed`, `stream`), in
    row-major order. With `row_stride`, row r (all dimensions but the last, flattened) begins at `start + r *
    row_stride`, which gives a shard of the columns of a wider tensor. Values are exact float32 numbers, |x| < 6.34;
    any other `dtype` is one rounding of them by the device's cast. `mode="fast"` draws from the device's own
    generator, seeded from the same numbers: only the distribution is then promised (on the host by 65536 levels, |x| <
    4.33), slices do not agree and `row_stride` is refused. Seeds, streams and starts out of range are a UsageError.
    """
    _check_dtype(dtype)
    layout, source = Layout.of(shape, start, row_stride), Source(seed, stream)
    if _is_fast(mode, row_stride):
        where = _resolve(device)
        return fast_normal(layout.shape, _own_generator(source, start, where), where, dtype)
    return _exact(layout, source, normal_from_bits, device, dtype)


def normal_at(index: torch.Tensor, *, seed: int, stream: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The elements numbered `index` (int64, any shape, any values) of the stream that `normal` draws from, on the
    index's device, in its shape; about four times the cost of a contiguous run.
    """
    _check_dtype(dtype)
    return _exact_at(index, Source(seed, stream), normal_from_bits, dtype)


def uniform(
    shape: Shape,
    *,
    seed: int,
    stream: int = 0,
    start: int = 0,
    row_stride: int | None = None,
    device: Device = None,
    dtype: torch.dtype = torch.float32,
    mode: Mode = "exact",
) -> torch.Tensor:
    """Uniform noise on [0, 1): exact multiples of 2**-24 in float32, otherwise as `normal`. A 16-bit `dtype` rounds,
    so it can reach 1. The same (seed, stream, element) gives the same random bits as `normal`: use another stream
    where the two must be independent.
    """
    _check_dtype(dtype)
    layout, source = Layout.of(shape, start, row_stride), Source(seed, stream)
    if _is_fast(mode, row_stride):
        where = _resolve(device)
        generator = _own_generator(source, start, where)
        return torch.rand(layout.shape, generator=generator, device=where, dtype=dtype)
    return _exact(layout, source, _uniform_from_bits, device, dtype)


def uniform_at(index: torch.Tensor, *, seed: int, stream: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The elements numbered `index` of the stream that `uniform` draws from; see `normal_at`."""
    _check_dtype(dtype)
    return _exact_at(index, Source(seed, stream), _uniform_from_bits, dtype)


def bits(
    shape: Shape,
    *,
    seed: int,
    stream: int = 0,
    start: int = 0,
    row_stride: int | None = None,
    device: Device = None,
) -> torch.Tensor:
    """The stream's raw 32-bit words as int64 in [0, 2**32). For stream 0, element 4 * i is what Triton's
    `tl.randint(seed, i)` returns as an unsigned word, and elements 4 * i to 4 * i + 3 are `tl.randint4x(seed, i)`.
    """
    layout = Layout.of(shape, start, row_stride)
    return _exact(layout, Source(seed, stream), _unsigned_from_bits, device, torch.int64)


def bits_at(index: torch.Tensor, *, seed: int, stream: int = 0) -> torch.Tensor:
    """The raw 32-bit words numbered `index` of the stream; see `bits` and `normal_at`."""
    return _exact_at(index, Source(seed, stream), _unsigned_from_bits, torch.int64)


def integers(
    shape: Shape,
    low: int,
    high: int,
    *,
    seed: int,
    stream: int = 0,
    start: int = 0,
    row_stride: int | None = None,
    device: Device = None,
) -> torch.Tensor:
    """Integers in [`low`, `high`), int64, by multiplying a 32-bit word into the range (probabilities differ by at most
    2**-32); a range that is empty or wider than 2**31 is a UsageError.
    """
    if not 0 < high - low <= 1 << 31:
        raise UsageError(f"integers in [{low}, {high}): the range must hold 1 to 2**31 values")
    words = bits(shape, seed=seed, stream=stream, start=start, row_stride=row_stride, device=device)
    return words.mul_(high - low).bitwise_right_shift_(32).add_(low)


def _uniform_from_bits(signed: torch.Tensor) -> torch.Tensor:
    return (signed >> 8).add_(1 << 23).to(torch.float32).mul_(2.0**-24)


def _unsigned_from_bits(signed: torch.Tensor) -> torch.Tensor:
    return signed.to(torch.int64).add_(1 << 31)


@torch.no_grad()
def _exact(layout: Layout, source: Source, transform: Transform, device: Device, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(layout.count, dtype=dtype, device=device)
    fill(out, layout, source, transform, chunk=None)
    return out.view(layout.shape)


@torch.no_grad()
def _exact_at(index: torch.Tensor, source: Source, transform: Transform, dtype: torch.dtype) -> torch.Tensor:
    if index.dtype != torch.int64:
        raise UsageError(f"index has dtype {index.dtype}: element numbers are int64 (use index.long())")
    out = torch.empty(index.numel(), dtype=dtype, device=index.device)
    fill_at(out, index.reshape(-1), source, transform, chunk=None)
    return out.view(index.shape)


def _resolve(device: Device) -> torch.device:
    return torch.get_default_device() if device is None else torch.device(device)


def _own_generator(source: Source, start: int, device: torch.device) -> torch.Generator:
    seed = stream_key(source.seed, source.stream, start) >> 1
    return torch.Generator(device=device).manual_seed(seed)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _FLOATING:
        names = ", ".join(str(known).removeprefix("torch.") for known in _FLOATING)
        raise UsageError(f"noise of dtype {dtype} was asked for: choose one of {names}")


def _is_fast(mode: str, row_stride: int | None) -> bool:
    if mode not in get_args(Mode):
        raise UsageError(f"noise mode is '{mode}': choose 'exact' or 'fast'")
    if mode == "fast" and row_stride is not None:
        raise UsageError("row_stride needs mode 'exact': the device's own generator cannot make one shard")
    return mode == "fast"
