"""Moments: accuracy where naive sums fail, and merging."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import hal
from hal import noise
from hal.ops.moments import Moments, merge, moments

VALUES = arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e6, 1e6, width=32))
X = noise.normal(300_000, seed=8)


def expected(x):
    values = x.double().flatten().numpy()
    return values.mean(), values.var(), scipy.stats.skew(values), scipy.stats.kurtosis(values)


def close(found, wanted, scale):
    return found == pytest.approx(wanted, rel=1e-5, abs=1e-5 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 2, 4095, 4096, 4097, 65_536, 70_000, 300_000])
def test_they_are_scipys(size, dtype):
    x = X[:size].to(dtype)
    found = moments(x)
    mean, variance, skewness, kurtosis = expected(x) if size > 1 else (float(x), 0.0, math.nan, math.nan)
    assert found.size == size
    assert found.mean == pytest.approx(mean, abs=1e-7)
    assert found.variance == pytest.approx(variance, rel=1e-6)
    assert found.standard_deviation == math.sqrt(found.variance)
    assert found.skewness == pytest.approx(skewness, abs=1e-6, nan_ok=True)
    assert found.kurtosis == pytest.approx(kurtosis, rel=1e-5, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_a_large_offset_costs_no_accuracy(offset):
    x = X + offset
    _, variance, skewness, kurtosis = expected(x)
    found = moments(x)
    assert found.variance == pytest.approx(variance, rel=1e-6)
    assert found.skewness == pytest.approx(skewness, abs=1e-5)
    assert found.kurtosis == pytest.approx(kurtosis, abs=1e-5)


@pytest.mark.parametrize("scale", [2.0**120, 2.0**-120, 2.0**-140])
def test_values_near_overflow_and_subnormal_ones_are_fine(scale):
    x = X * scale
    _, variance, _, kurtosis = expected(x.double() / scale)
    assert moments(x).variance == pytest.approx(variance * scale**2, rel=1e-5)
    assert moments(x).kurtosis == pytest.approx(kurtosis, abs=1e-4)


def test_heavy_tails():
    x = X.clone()
    x[::1000] *= 300
    assert moments(x).kurtosis == pytest.approx(expected(x)[3], rel=1e-6)


@given(values=VALUES, cuts=st.lists(st.integers(0, 300), max_size=5))
def test_merging_parts_gives_the_whole(values, cuts):
    x = torch.from_numpy(values.copy())
    edges = [0, *sorted(min(cut, len(x)) for cut in cuts), len(x)]
    parts = [moments(x[low:high]) for low, high in itertools.pairwise(edges)]
    merged, whole = merge(parts), moments(x)
    spread = float(np.abs(values.astype(np.float64) - values.mean(dtype=np.float64)).max()) + 1e-30
    assert merged.size == whole.size
    assert merged.mean == pytest.approx(whole.mean, abs=1e-6 * spread + 1e-7 * abs(whole.mean))
    for power, (found, wanted) in enumerate(zip(merged[2:], whole[2:], strict=True), 2):
        assert close(found, wanted, len(x) * spread**power)


def test_order_of_merging_does_not_matter():
    first, second, third = (moments(X[place : place + 500] * place) for place in (1, 2000, 5000))
    assert first.merge(second, third) == pytest.approx(third.merge(first).merge(second), rel=1e-12)


def test_nothing_is_neutral():
    nothing = moments(torch.empty(0, 3))
    assert nothing == merge([]) == Moments(0, 0.0, 0.0, 0.0, 0.0)
    assert math.isnan(nothing.variance)
    some = moments(X[:50])
    assert some.merge(nothing) == pytest.approx(some, rel=1e-12)


def test_a_constant_has_no_shape():
    found = moments(torch.full((5000,), 0.1))
    assert found.variance == 0.0
    assert math.isnan(found.kurtosis)
    assert math.isnan(found.skewness)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_nonfinite_element_makes_them_nan(bad):
    x = X[:9000].clone()
    x[77] = bad
    found = moments(x)
    assert found.size == 9000
    assert all(math.isnan(value) for value in found[1:])
    assert math.isnan(found.kurtosis)


def test_shape_and_strides_do_not_matter():
    square = X[:10_000].view(100, 100)
    assert moments(square) == moments(square.reshape(-1))
    assert moments(square.T) == pytest.approx(moments(square), rel=1e-5, abs=1e-3)


def test_no_gradient_is_recorded():
    assert moments(X[:10].clone().requires_grad_()).size == 10


def test_integers_are_refused():
    with pytest.raises(hal.UsageError, match=r"statistics of a tensor of dtype torch\.int64"):
        moments(torch.arange(4))
