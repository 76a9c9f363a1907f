"""Digest: every change shows. Checksum: no false alarm on rounding, and faults show."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hal
from hal import noise
from hal.ops.integrity import _ROW, _weights, matmul_checksum, tensor_digest

X = noise.normal((3, 30_001), seed=31)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}


def test_digest_is_frozen():
    assert tensor_digest(X) == 4145126929251303857
    assert tensor_digest(X.to(torch.bfloat16)) == 2559438170767058455
    assert tensor_digest(torch.arange(10)) == 5687211035912199519


@given(place=st.integers(0, X.numel() - 1), bit=st.integers(0, 31))
def test_any_flipped_bit_changes_the_digest(place, bit):
    damaged = X.clone()
    pattern = damaged.view(torch.int32).view(-1)
    pattern[place] ^= (1 << bit) - (1 << 32 if bit == 31 else 0)
    assert tensor_digest(damaged) != tensor_digest(X)


@given(first=st.integers(0, X.numel() - 1), second=st.integers(0, X.numel() - 1))
def test_exchanged_elements_change_the_digest(first, second):
    damaged = X.clone().view(-1)
    damaged[first], damaged[second] = X.view(-1)[second], X.view(-1)[first]
    assert (tensor_digest(damaged.view(X.shape)) == tensor_digest(X)) == torch.equal(damaged.view(X.shape), X)


def test_exchanged_rows_of_the_digest_change_it():
    x = noise.normal(2 * _ROW, seed=1)
    assert tensor_digest(x) != tensor_digest(x.roll(_ROW // 2))


def test_dtype_shape_and_sign_of_zero_count():
    zeros = torch.zeros(4)
    others = [zeros.view(2, 2), -zeros, zeros.to(torch.bfloat16), torch.zeros(5), zeros.int(), torch.zeros(0)]
    digests = {tensor_digest(zeros), *(tensor_digest(other) for other in others)}
    assert len(digests) == 1 + len(others)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
)
def test_every_width_has_a_digest(dtype):
    x = torch.arange(70_000).remainder(2).to(dtype)
    damaged = x.clone()
    damaged[69_999] = 0
    assert tensor_digest(x) != tensor_digest(damaged)


def test_strides_do_not_matter():
    assert tensor_digest(X.T) == tensor_digest(X.T.contiguous())
    assert tensor_digest(X[:, ::2]) == tensor_digest(X[:, ::2].clone())


def test_weights_differ_by_place_and_fit():
    weights = _weights(torch.device("cpu"))
    assert len(set(weights.tolist())) == _ROW
    assert int(weights.min()) > 0
    assert _ROW * int(weights.max()) * 0xFFFF < 2**63


@pytest.mark.parametrize("x", [torch.ones(3, dtype=torch.complex64), torch.eye(3).to_sparse()])
def test_complex_and_sparse_tensors_have_none(x):
    with pytest.raises(hal.UsageError, match="give a dense real one"):
        tensor_digest(x)


def product(dtype, rows=64, k=256, n=128, seed=0, offset=0.0):
    x = (noise.normal((rows, k), seed=seed, stream=1) + offset).to(dtype)
    weight = (noise.normal((n, k), seed=seed, stream=2) / 16 + offset / 16).to(dtype)
    return x, weight, torch.nn.functional.linear(x, weight)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_raises_no_alarm(dtype, offset):
    for seed in range(20):
        checksum = matmul_checksum(*product(dtype, seed=seed, offset=offset))
        assert not checksum.exceeded.any()


@pytest.mark.parametrize("flushed", [False, True])
def test_results_that_are_subnormal_raise_no_alarm(flushed):
    """float16 rounds them by as much as it rounds its smallest normal number, and some devices make zeros of them."""
    for seed in range(20):
        x, weight, y = product(torch.float16, seed=seed)
        y = torch.nn.functional.linear(x / 256, weight / 256)
        if flushed:
            y = torch.where(y.abs() < torch.finfo(y.dtype).smallest_normal, 0.0, y)
        assert not matmul_checksum(x / 256, weight / 256, y).exceeded.any()


def test_partial_sums_far_above_the_result_raise_no_alarm():
    x, weight, _ = product(torch.float32, k=2048)
    x, weight = x.abs(), weight.abs()
    weight[:, 1024:] *= -1
    assert not matmul_checksum(x, weight, torch.nn.functional.linear(x, weight)).exceeded.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bound_is_about_ten_times_the_error(dtype):
    checksum = matmul_checksum(*product(dtype, rows=1024))
    typical = float(checksum.residual.square().mean().sqrt())
    assert 5 * typical < float(checksum.bound.mean()) < 25 * typical


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fault_in_one_element_shows_in_its_row_alone(dtype):
    x, weight, y = product(dtype)
    damaged = y.clone()
    # A few hundred roundings of the largest element: the bound for a row of 128.
    damaged[17, 5] += 200 * UNIT[dtype] * float(y.abs().max())
    assert matmul_checksum(x, weight, damaged).exceeded.nonzero().tolist() == [[17]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_results_are_exceeded(bad):
    x, weight, y = product(torch.float32)
    y[3, 3] = bad
    assert matmul_checksum(x, weight, y).exceeded.nonzero().tolist() == [[3]]


def test_bias_is_taken_into_account():
    x, weight, y = product(torch.float32)
    bias = noise.normal(weight.shape[0], seed=5)
    assert not matmul_checksum(x, weight, y + bias, bias).exceeded.any()
    assert matmul_checksum(x, weight, y + bias).exceeded.all()


def test_leading_dimensions_are_kept():
    x, weight, y = product(torch.float32)
    checksum = matmul_checksum(x.view(4, 16, -1), weight, y.view(4, 16, -1))
    assert checksum.residual.shape == checksum.bound.shape == (4, 16)


def test_more_sigmas_widen_the_bound():
    arguments = product(torch.float32)
    narrow, wide = matmul_checksum(*arguments, sigmas=3.0), matmul_checksum(*arguments, sigmas=6.0)
    assert torch.allclose(wide.bound, 2 * narrow.bound)
