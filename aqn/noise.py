"""Noise on one tensor: `x + sigma * abs(x) * e`, with e a function of (seed, stream, element) alone.

Element (head, position, column) of a result has number `head << 44 | position << 20 | column`, whatever the batch,
the width or the split into calls; sequences of one batch share their noise. A weight's gradient, which has no tokens,
is numbered in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch

from aqn.tokens import TokenRows
from hal import noise
from hal.errors import HookError
from hal.noise import Mode

POSITION_BITS, COLUMN_BITS = 24, 20
ROW_STRIDE = 1 << COLUMN_BITS
_HEAD_STRIDE = 1 << (POSITION_BITS + COLUMN_BITS)

_Draw = Callable[[int, int], torch.Tensor]


@dataclass(frozen=True)
class Stream:
    """Where noise comes from: the `seed`, the 64-bit `key` of the stream, and the mode of `hal.noise`. A tensor that
    holds a shard of the columns begins at `first_column` of the whole.
    """

    seed: int
    key: int
    mode: Mode
    first_column: int = 0


@dataclass(frozen=True)
class _Grid:
    """A tensor seen as [batch, rows, width], with the noise of rows first to last as `draw(first, last)`; `fast` noise
    is not bound to its bits.
    """

    batch: int
    rows: int
    width: int
    draw: _Draw
    fast: bool


def forward_noise(
    x: torch.Tensor, sigma: float, stream: Stream, tokens: TokenRows | None, heads_first: bool = False
) -> torch.Tensor:
    """`x + sigma * abs(x) * e`, computed in float32 with each operation rounded by itself and once to x's dtype. The
    gradient is `1 + sigma * sign(x) * e`, from noise drawn again instead of kept. `tokens` says whose rows x holds;
    None numbers its elements in row-major order. `heads_first`: x is [batch, heads, length, columns], not [batch,
    length, ...].
    """
    if not x.numel():
        return x
    grid = _grid(x, stream, tokens, heads_first)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _perturbed(x, sigma, grid)
    return cast(torch.Tensor, _ForwardNoise.apply(x, sigma, grid))  # type: ignore[no-untyped-call]  # torch's


def backward_noise(
    x: torch.Tensor, sigma: float, stream: Stream, tokens: TokenRows | None, heads_first: bool = False
) -> torch.Tensor:
    """`x` itself; the gradient g that comes back through it becomes `g + sigma * abs(g) * e`."""
    if not (torch.is_grad_enabled() and x.requires_grad and x.numel()):
        return x
    return cast(torch.Tensor, _BackwardNoise.apply(x, sigma, _grid(x, stream, tokens, heads_first)))  # type: ignore[no-untyped-call]  # torch's


class _ForwardNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sigma: float, grid: _Grid) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.sigma, ctx.grid = sigma, grid
        return _perturbed(x, sigma, grid)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,) = ctx.saved_tensors
        values, incoming = _folded(x, ctx.grid), _folded(gradient, ctx.grid)
        out = torch.empty_like(values, dtype=gradient.dtype)
        for first, last, draw in _pieces(ctx.grid, x.device):
            if _may_fuse(ctx.grid, values, incoming):
                piece = incoming[:, first:last]
                signed = values[:, first:last].sign().mul_(piece)
                torch.addcmul(piece, signed, draw, value=ctx.sigma, out=out[:, first:last])
                continue
            factor = values[:, first:last].float().sign().mul_(draw.mul_(ctx.sigma)).add_(1.0)
            out[:, first:last] = factor.mul_(incoming[:, first:last].float())
        return out.view(x.shape), None, None


class _BackwardNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sigma: float, grid: _Grid) -> torch.Tensor:
        ctx.sigma, ctx.grid = sigma, grid
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _perturbed(gradient, ctx.sigma, ctx.grid), None, None


@torch.no_grad()
def _perturbed(x: torch.Tensor, sigma: float, grid: _Grid) -> torch.Tensor:
    values = _folded(x, grid)
    # What a custom function returns may not be a view: models add to results in place.
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out = _folded(result, grid)
    for first, last, draw in _pieces(grid, x.device):
        if _may_fuse(grid, values):
            torch.addcmul(values[:, first:last], values[:, first:last].abs(), draw, value=sigma, out=out[:, first:last])
            continue
        piece = values[:, first:last].float()
        # One kernel an operation, so that no device fuses two and rounds once less.
        out[:, first:last] = piece.abs().mul_(draw.mul_(sigma)).add_(piece)
    return result


def _may_fuse(grid: _Grid, *tensors: torch.Tensor) -> bool:
    """Fast noise promises a distribution, not bits: multiply and add may be one kernel."""
    return grid.fast and all(tensor.dtype == torch.float32 for tensor in tensors)


def _folded(x: torch.Tensor, grid: _Grid) -> torch.Tensor:
    return x.reshape(grid.batch, grid.rows, grid.width)


def _pieces(grid: _Grid, device: torch.device) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Rows a few at a time, so that noise is drawn, used and written while it lies in a cache."""
    size = max(1, noise.chunk_elements(device) // max(grid.width, 1))
    for first in range(0, grid.rows, size):
        last = min(first + size, grid.rows)
        yield first, last, grid.draw(first, last)


def _grid(x: torch.Tensor, stream: Stream, tokens: TokenRows | None, heads_first: bool) -> _Grid:
    if type(x).__name__ == "DTensor":
        raise HookError(
            "noise met a DTensor: tensor-parallel models are not supported; use data parallelism (DDP, FSDP)"
        )
    layout = _layout(x.shape, tokens, heads_first) if tokens else None
    if tokens is None or layout is None:
        width = int(x.shape[-1]) if x.dim() else 1
        return _flat_grid(x.numel() // width, width, stream, x.device)
    heads, width = layout
    if width > ROW_STRIDE:
        raise HookError(f"noise met a result {width} wide: at most {ROW_STRIDE} columns of a token are numbered")
    make = _shared_grid if tokens.place is None else _own_grid
    return make(heads, width, stream, tokens)


def _layout(shape: torch.Size, tokens: TokenRows, heads_first: bool) -> tuple[int, int] | None:
    """Heads and columns of a token in a tensor of this shape, None where its rows are not the tokens: [batch, heads,
    length, columns] if `heads_first`, otherwise the tokens lead and all that follows are columns.
    """
    count = tokens.count
    if heads_first:
        rows = math.prod(shape[:-1])
        by_sequence = len(shape) == 2 or shape[-2] == tokens.length
        return (rows // count, shape[-1]) if len(shape) > 1 and by_sequence and rows % count == 0 else None
    leading = 1
    for place, size in enumerate(shape[:-1]):
        leading *= size
        if leading == count and (place > 0 or tokens.batch == 1 or len(shape) == 2):
            return 1, math.prod(shape[place + 1 :])
    return None


def _flat_grid(rows: int, width: int, stream: Stream, device: torch.device) -> _Grid:
    def draw(first: int, last: int) -> torch.Tensor:
        shape = (last - first, width)
        return noise.normal(
            shape, seed=stream.seed, stream=stream.key, start=first * width, device=device, mode=stream.mode
        )

    return _Grid(1, rows, width, draw, stream.mode == "fast")


def _shared_grid(heads: int, width: int, stream: Stream, tokens: TokenRows) -> _Grid:
    """Every sequence has the same positions: noise for one serves them all. Heads lie between batch and position."""

    def draw(first: int, last: int) -> torch.Tensor:
        return torch.cat(
            [
                _rows_of(tokens, stream, head, begin, end, width)
                for head, begin, end in _runs(first, last, tokens.length)
            ]
        )

    return _Grid(tokens.batch, heads * tokens.length, width, draw, stream.mode == "fast")


def _own_grid(heads: int, width: int, stream: Stream, tokens: TokenRows) -> _Grid:
    """Sequences differ in their positions: draw each position that occurs once, and give it to its tokens."""
    place = tokens.unique.new_empty(0) if tokens.place is None else tokens.place
    positions, rows = tokens.unique.numel(), heads * tokens.count
    # Row (sequence, head, token) takes line (head, position) of the table.
    head = torch.arange(heads, device=place.device)[None, :, None] * positions
    line = (place[:, None, :] + head).reshape(-1)

    def table() -> torch.Tensor:
        return torch.cat([_rows_of(tokens, stream, each, 0, positions, width) for each in range(heads)])

    drawn: list[torch.Tensor] = []

    def draw(first: int, last: int) -> torch.Tensor:
        if not drawn:
            drawn.append(table())
        piece = drawn[0].index_select(0, line[first:last])
        if last == rows:
            drawn.clear()
        return piece

    return _Grid(1, rows, width, draw, stream.mode == "fast")


def _rows_of(tokens: TokenRows, stream: Stream, head: int, begin: int, end: int, width: int) -> torch.Tensor:
    """Noise [end - begin, width] of the positions begin to end of `tokens.unique`, in one head."""
    device, seed, key = tokens.unique.device, stream.seed, stream.key
    start = head * _HEAD_STRIDE + (tokens.first + begin) * ROW_STRIDE + stream.first_column
    if stream.mode == "fast":
        return noise.normal((end - begin, width), seed=seed, stream=key, start=start, device=device, mode="fast")
    if tokens.consecutive:
        return noise.normal(
            (end - begin, width), seed=seed, stream=key, start=start, row_stride=ROW_STRIDE, device=device
        )
    column = torch.arange(stream.first_column, stream.first_column + width, device=device)
    index = head * _HEAD_STRIDE + tokens.unique[begin:end, None] * ROW_STRIDE + column
    return noise.normal_at(index, seed=seed, stream=key)


def _runs(first: int, last: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Rows first to last as (head, begin, end), cut where the head changes."""
    while first < last:
        head, begin = divmod(first, length)
        end = min(length, begin + last - first)
        yield head, begin, end
        first += end - begin
