"""An element's value depends on its seed, stream and number alone, however it is asked for."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hal
from hal import noise
from hal.noise.inverse_cdf import _tables, normal_from_bits
from hal.noise.layout import Layout, Source, fill

SEED, STREAM = 20_240_817, 3
WHOLE = noise.normal(5000, seed=SEED, stream=STREAM)

# Frozen: every backend must reproduce these bytes (little-endian float32 and int64).
NORMAL_SHA256 = "c44582e2be6e7a40bfefe89c3b5d0d10f47b371b0924814e50247959f5742e24"
BITS_SHA256 = "e4e1c5fa53aed8c4275710d48f37f6e7316f5d59951958022ae5199db42f01a9"


def sha256(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_stream_is_frozen():
    assert sha256(noise.normal((1 << 18) + 3, seed=7, stream=1 << 40, start=5)) == NORMAL_SHA256
    assert sha256(noise.bits(1 << 12, seed=7, stream=1 << 40, start=5)) == BITS_SHA256


@given(start=st.integers(0, 4000), count=st.integers(0, 1000))
def test_slice_is_that_of_the_whole(start, count):
    part = noise.normal(count, seed=SEED, stream=STREAM, start=start)
    assert torch.equal(part, WHOLE[start : start + count])


@given(index=st.lists(st.integers(0, 4999), max_size=40))
def test_elements_by_number_are_those_of_the_whole(index):
    index = torch.tensor(index, dtype=torch.int64)
    assert torch.equal(noise.normal_at(index, seed=SEED, stream=STREAM), WHOLE[index])


@given(
    rows=st.integers(1, 12),
    stride=st.integers(1, 200),
    begin=st.integers(0, 40),
    data=st.data(),
)
def test_shard_of_columns_is_that_of_the_whole(rows, stride, begin, data):
    first = data.draw(st.integers(0, stride - 1))
    width = data.draw(st.integers(1, stride - first))
    shard = noise.normal((rows, width), seed=SEED, stream=STREAM, start=begin + first, row_stride=stride)
    whole = WHOLE[begin : begin + rows * stride].view(rows, stride)
    assert torch.equal(shard, whole[:, first : first + width])


@pytest.mark.parametrize("first", [0, 8, 24])
def test_shard_on_block_boundaries_is_that_of_the_whole(first):
    shard = noise.normal((5, 3, 8), seed=SEED, stream=STREAM, start=4 + first, row_stride=32)
    assert torch.equal(shard, WHOLE[4:484].view(5, 3, 32)[..., first : first + 8])


@given(chunk=st.integers(1, 400), start=st.integers(0, 9))
@settings(max_examples=50)
def test_chunk_size_does_not_matter(chunk, start):
    out = torch.empty(1000)
    fill(out, Layout.of(1000, start, None), Source(SEED, STREAM), normal_from_bits, chunk)
    assert torch.equal(out, WHOLE[start : start + 1000])


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
@pytest.mark.parametrize("stride", [32, 33])
def test_chunk_size_does_not_matter_to_shards(chunk, stride):
    out = torch.empty(80)
    fill(out, Layout.of((10, 8), 4, stride), Source(SEED, STREAM), normal_from_bits, chunk)
    assert torch.equal(out.view(10, 8), WHOLE[4 : 4 + 10 * stride].view(10, stride)[:, :8])


@pytest.mark.parametrize("boundary", [2**34, 2**35, 2**62])
def test_stream_runs_on_where_the_block_number_outgrows_32_bits(boundary):
    count = 40
    run = noise.normal(count, seed=SEED, start=boundary - 18)
    index = torch.arange(boundary - 18, boundary - 18 + count)
    assert torch.equal(run, noise.normal_at(index, seed=SEED))
    rows = noise.normal((5, 8), seed=SEED, start=boundary - 20, row_stride=8)
    assert torch.equal(rows.view(-1)[2:], run[:-2])
    assert len(set(run.tolist())) == count


def test_any_int64_is_an_element_number():
    index = torch.tensor([-1, -(2**63), 2**63 - 1, 0])
    assert len(set(noise.bits_at(index, seed=SEED).tolist())) == 4


def test_shape_is_filled_in_row_major_order():
    assert torch.equal(noise.normal((10, 5, 100), seed=SEED, stream=STREAM).view(-1), WHOLE)
    assert torch.equal(noise.normal_at(torch.arange(6).view(2, 3), seed=SEED, stream=STREAM), WHOLE[:6].view(2, 3))


def test_index_may_be_a_view_of_any_strides():
    index = torch.arange(100).view(10, 10)
    expected = WHOLE[:100].view(10, 10)
    assert torch.equal(noise.normal_at(index.T, seed=SEED, stream=STREAM), expected.T)
    assert torch.equal(noise.normal_at(index[::2, 3], seed=SEED, stream=STREAM), expected[::2, 3])


@pytest.mark.parametrize("shape", [0, (0,), (3, 0), (0, 4)])
@pytest.mark.parametrize("stride", [None, 8])
def test_empty_shapes_are_fine(shape, stride):
    expected = (shape,) if isinstance(shape, int) else shape
    assert noise.normal(shape, seed=1, row_stride=stride).shape == expected


def test_a_number_of_no_dimension():
    assert noise.normal((), seed=SEED, stream=STREAM, start=9).item() == WHOLE[9].item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_round_the_float32_values_once(dtype):
    narrow = noise.normal(5000, seed=SEED, stream=STREAM, dtype=dtype)
    assert torch.equal(narrow, WHOLE.to(dtype))
    index = torch.arange(50)
    assert torch.equal(noise.normal_at(index, seed=SEED, stream=STREAM, dtype=dtype), narrow[:50])
    assert torch.equal(noise.uniform(50, seed=1, dtype=dtype), noise.uniform(50, seed=1).to(dtype))


def test_float64_holds_the_float32_values():
    assert torch.equal(noise.normal(99, seed=SEED, stream=STREAM, dtype=torch.float64), WHOLE[:99].double())


def test_noise_needs_no_gradient_and_survives_inference_mode():
    with torch.inference_mode():
        noise.normal(4, seed=0)
    x = torch.ones(4, requires_grad=True)
    (x * noise.normal(4, seed=0)).sum().backward()
    assert torch.equal(x.grad, noise.normal(4, seed=0))


def test_default_device_is_followed_and_an_explicit_one_comes_first():
    _tables.cache_clear()
    with torch.device("meta"):
        assert torch.equal(noise.normal(9, seed=SEED, stream=STREAM, device="cpu"), WHOLE[:9])
        assert noise.bits(4, seed=0, device="cpu").device.type == "cpu"
        assert noise.normal(4, seed=0).device.type == "meta"


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    noise.normal(100, seed=0)
    noise.normal(100, seed=0, mode="fast")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": 4, "seed": -1}, "seed is -1: give an integer from 0"),
        ({"shape": 4, "seed": 2**64}, "seed is 18446744073709551616"),
        ({"shape": 4, "seed": 1.5}, "seed is 1.5"),
        ({"shape": 4, "seed": True}, "seed is True"),
        ({"shape": 4, "seed": 0, "stream": "x"}, "stream is 'x'"),
        ({"shape": 4, "seed": 0, "start": -1}, "start is -1: elements are numbered from 0"),
        ({"shape": 4, "seed": 0, "start": 2**63 - 2}, "start is 9223372036854775806"),
        ({"shape": (3, -1), "seed": 0}, r"shape is \(3, -1\): sizes must not be negative"),
        ({"shape": (3, 4), "seed": 0, "row_stride": 3}, "row_stride is 3: it must be at least the last size, 4"),
        ({"shape": 4, "seed": 0, "dtype": torch.int32}, "noise of dtype torch.int32 was asked for: choose one of"),
        ({"shape": 4, "seed": 0, "mode": "quick"}, "noise mode is 'quick': choose 'exact' or 'fast'"),
        ({"shape": (1, 4), "seed": 0, "row_stride": 4, "mode": "fast"}, "row_stride needs mode 'exact'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(hal.UsageError, match=message):
        noise.normal(**arguments)


def test_index_of_another_dtype_is_refused():
    with pytest.raises(hal.UsageError, match=r"index has dtype torch\.int32: element numbers are int64"):
        noise.normal_at(torch.arange(3, dtype=torch.int32), seed=0)
