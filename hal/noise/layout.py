"""Which element of a stream lies where: checks, counters and chunks.

Element i of a stream is word i % 4 of block i // 4. The block number is the counter's low 64 bits, the
stream key its high 64 bits and the seed the generator's key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from hal.errors import UsageError
from hal.noise.philox import MASK32, Words, philox4x32

# Blocks made at a time: on the host few enough for the working set to stay in the second-level cache,
# elsewhere enough for launches to be negligible.
HOST_CHUNK = 1 << 14
DEVICE_CHUNK = 1 << 21

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Source:
    """One stream: a 64-bit `seed` and a 64-bit `stream` key; values outside [0, 2**64) are a UsageError."""

    seed: int
    stream: int = 0

    def __post_init__(self) -> None:
        for name, value in (("seed", self.seed), ("stream", self.stream)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
                raise UsageError(f"{name} is {value!r}: give an integer from 0 to 2**64 - 1 (see stream_key)")

    def words(self, low: torch.Tensor, high: int | torch.Tensor) -> Words:
        """The four words of the blocks numbered `high * 2**32 + low`."""
        return philox4x32((low, high, self.stream & MASK32, self.stream >> 32), self.seed)


@dataclass(frozen=True)
class Layout:
    """Rows of `width` elements each; row r begins at element `start + r * row_stride` of the stream."""

    shape: tuple[int, ...]
    start: int
    row_stride: int
    width: int

    @classmethod
    def of(cls, shape: Sequence[int] | int, start: int, row_stride: int | None) -> Layout:
        """Check and normalise the arguments; without `row_stride` the tensor is one contiguous row."""
        sizes = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
        if any(size < 0 for size in sizes):
            raise UsageError(f"shape is {sizes}: sizes must not be negative")
        count = math.prod(sizes)
        width = count if row_stride is None else (sizes[-1] if sizes else 1)
        stride = count if row_stride is None else row_stride
        if stride < width:
            raise UsageError(f"row_stride is {stride}: it must be at least the last size, {width}")
        layout = cls(sizes, start, stride, width)
        if start < 0 or start + layout.rows * stride >= 1 << 63:
            raise UsageError(f"start is {start}: elements are numbered from 0 to 2**63 - 1")
        return layout

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.count // self.width if self.width else 0

    @property
    def aligned(self) -> bool:
        """Whether every row begins and ends on a block boundary."""
        return self.rows > 1 and not (self.start % 4 or self.row_stride % 4 or self.width % 4)


def chunk_elements(device: torch.device) -> int:
    """How many elements of noise are made at a time on `device`; a caller that draws as many at a time adds no cost
    and keeps its own temporaries as small.
    """
    return 4 * (HOST_CHUNK if device.type == "cpu" else DEVICE_CHUNK)


def fill(out: torch.Tensor, layout: Layout, source: Source, transform: Transform, chunk: int | None) -> None:
    """Write the layout's elements into `out`, flat; `chunk` is the number of blocks made at a time."""
    size = chunk or chunk_elements(out.device) // 4
    if layout.rows == 1:
        _fill_run(out, layout.start, source, transform, size)
    elif layout.aligned:
        _fill_rows(out, layout, source, transform, size)
    elif layout.rows:
        index = torch.arange(layout.rows, device=out.device)[:, None] * layout.row_stride + layout.start
        index = index + torch.arange(layout.width, device=out.device)
        fill_at(out, index.view(-1), source, transform, size)


def fill_at(out: torch.Tensor, index: torch.Tensor, source: Source, transform: Transform, chunk: int | None) -> None:
    """Write the stream's elements numbered `index`, flat int64, into `out`; a negative number counts as its 64-bit
    two's complement.
    """
    size = chunk or chunk_elements(out.device) // 4
    for begin in range(0, index.numel(), size):
        piece = index[begin : begin + size]
        block = piece >> 2
        words = source.words(block & MASK32, (block >> 32) & (MASK32 >> 2))
        chosen = torch.stack(words).gather(0, (piece & 3)[None])[0]
        out[begin : begin + size] = transform(_signed(chosen))


def _fill_run(out: torch.Tensor, start: int, source: Source, transform: Transform, size: int) -> None:
    end = start + out.numel()
    for first, last in _blocks(start >> 2, (end + 3) >> 2, size):
        low = torch.arange(first & MASK32, (first & MASK32) + last - first, device=out.device)
        values = transform(_interleave(source.words(low, first >> 32)))
        begin, stop = max(start, 4 * first), min(end, 4 * last)
        out[begin - start : stop - start] = values[begin - 4 * first : stop - 4 * first]


def _fill_rows(out: torch.Tensor, layout: Layout, source: Source, transform: Transform, size: int) -> None:
    width, stride, first = layout.width // 4, layout.row_stride // 4, layout.start // 4
    column = torch.arange(width, device=out.device)
    rows_at_once = max(1, size // width)
    for row in range(0, layout.rows, rows_at_once):
        count = min(rows_at_once, layout.rows - row)
        begin = torch.arange(row, row + count, device=out.device) * stride + first
        block = (begin[:, None] + column).view(-1)
        values = transform(_interleave(source.words(block & MASK32, block >> 32)))
        out[row * layout.width : (row + count) * layout.width] = values


def _blocks(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Split a range of blocks into chunks that do not cross a multiple of 2**32."""
    while first < last:
        end = min(last, first + size, ((first >> 32) + 1) << 32)
        yield first, end
        first = end


def _interleave(words: Words) -> torch.Tensor:
    mixed = torch.empty(words[0].numel(), 4, dtype=torch.int32, device=words[0].device)
    for column, word in enumerate(words):
        mixed[:, column] = word.sub_(1 << 31)
    return mixed.view(-1)


def _signed(word: torch.Tensor) -> torch.Tensor:
    """Move [0, 2**32) to the range of an int32, so that narrowing never wraps."""
    return word.sub(1 << 31).to(torch.int32)
