"""Quantiles, histogram and repeated values at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import hal
from hal import noise
from hal.ops.statistics import even_edges, histogram, multiplicity, quantile

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FEW = arrays.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e30]))


@given(values=arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)))
def test_quantiles_are_numpys(values):
    levels = [0.0, 0.1, 1 / 3, 0.5, 0.999, 1.0]
    expected = np.quantile(values.astype(np.float64), levels)
    tolerance = 1e-6 * (np.abs(values).max() + 1e-30)
    assert np.abs(quantile(torch.from_numpy(values), levels).numpy() - expected).max() <= tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantiles_are_float32(dtype):
    found = quantile(torch.arange(5).to(dtype), [0.5, 0.25])
    assert found.dtype == torch.float32
    assert found.tolist() == [2.0, 1.0]


def test_quantile_next_to_infinity():
    x = torch.tensor([1.0, 2.0, 3.0, math.inf])
    assert quantile(x, [2 / 3, 1.0, 0.9]).tolist() == [3.0, math.inf, math.inf]
    assert quantile(torch.tensor([math.inf, math.inf]), [0.3]).tolist() == [math.inf]


def test_quantile_between_opposite_extremes_does_not_overflow():
    assert quantile(torch.tensor([-3e38, 3e38]), [0.5]).item() == 0.0


def test_quantile_of_a_nan_is_nan():
    assert quantile(torch.tensor([1.0, math.nan, 2.0]), [0.0, 0.5]).isnan().all()


@pytest.mark.parametrize(("x", "levels"), [(torch.ones(3), [1.1]), (torch.ones(3), [-0.1]), (torch.empty(0), [0.5])])
def test_impossible_quantiles_are_refused(x, levels):
    with pytest.raises(hal.UsageError, match=r"levels in \[0, 1\] of at least one element"):
        quantile(x, levels)


def test_bins_hold_their_lower_edge_and_the_last_one_both():
    x = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.5, 2.0, 2.1, math.nan, math.inf, -math.inf])
    assert histogram(x, [0.0, 1.0, 2.0]).tolist() == [2, 3]


@given(values=arrays.arrays(np.float32, st.integers(0, 100), elements=st.floats(-4, 4, width=32)))
def test_histogram_is_numpys(values):
    edges = even_edges(-3.0, 3.0, 7)
    expected = np.histogram(values, np.array(edges, dtype=np.float32))[0]
    assert histogram(torch.from_numpy(values), edges).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_histogram_counts_every_element_within(dtype):
    x = noise.normal((50, 41), seed=1, dtype=dtype).clamp(-3, 3)
    counts = histogram(x, even_edges(-3.0, 3.0, 10))
    assert counts.dtype == torch.int64
    assert int(counts.sum()) == x.numel()


@pytest.mark.parametrize("edges", [[0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1e-50], [0.0, math.nan]])
def test_edges_that_do_not_increase_are_refused(edges):
    with pytest.raises(hal.UsageError, match="give at least two, strictly increasing"):
        histogram(torch.ones(3), edges)


def test_even_edges_end_where_they_should():
    edges = even_edges(-0.1, 0.7, 3)
    assert (edges[0], edges[-1], len(edges)) == (-0.1, 0.7, 4)


@given(values=FEW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeats_are_counted(values, dtype):
    x = torch.from_numpy(values.copy()).to(dtype)
    found = multiplicity(x, top=9)
    unique, counts = np.unique(x.double().numpy(), return_counts=True)
    assert dict(zip(found.values.tolist(), found.counts.tolist(), strict=True)) == dict(
        zip(unique.tolist(), counts.tolist(), strict=True)
    )
    assert found.counts.tolist() == sorted(counts.tolist(), reverse=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clamp_shows_as_repeats(dtype):
    x = noise.normal(20_000, seed=1).clamp(-2.0, 1.5).to(dtype)
    found = multiplicity(x, top=2)
    assert found.values.tolist() == [1.5, -2.0]
    assert found.counts.tolist() == [int((x == 1.5).sum()), int((x == -2).sum())]


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_are_one_each(dtype):
    x = torch.tensor([0.0, -0.0, -0.0, math.nan, -math.nan, math.inf, math.inf, math.inf, math.inf], dtype=dtype)
    found = multiplicity(x, top=5)
    assert found.counts.tolist() == [4, 3, 2]
    assert found.values[:2].tolist() == [math.inf, 0.0]
    assert found.values[2].isnan()


def test_values_equally_frequent_come_by_bit_pattern():
    assert multiplicity(torch.tensor([3.0, 1.0, -2.0, 2.0]), top=4).values.tolist() == [-2.0, 1.0, 2.0, 3.0]


def test_top_less_than_one_is_refused():
    with pytest.raises(hal.UsageError, match="multiplicity of the top 0 values was asked for"):
        multiplicity(torch.ones(3), top=0)
