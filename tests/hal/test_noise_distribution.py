"""Is it Gaussian, uniform, independent? Seeds are fixed, so a pass is permanent; each bound is the 1e-4 quantile
(two-sided, 3.9 standard errors) of its statistic under the null hypothesis unless another is stated."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

import hal
from hal import noise
from hal.noise.fast import LEVELS, _levels

COUNT = 1 << 20
SIGNIFICANCE = 1e-4
SIGMAS = 3.9
SAMPLE = noise.normal(COUNT, seed=1234, stream=noise.stream_key("distribution"), dtype=torch.float64)


@pytest.mark.parametrize(
    ("power", "expected", "variance"),
    [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0), (6, 15.0, 10_170.0)],
)
def test_moments_are_those_of_the_normal_distribution(power, expected, variance):
    error = float(SAMPLE.pow(power).mean()) - expected
    assert abs(error) < SIGMAS * math.sqrt(variance / COUNT)


def test_kolmogorov_smirnov():
    assert scipy.stats.kstest(SAMPLE.numpy(), "norm").pvalue > SIGNIFICANCE


def test_chi_square_over_a_thousand_bins():
    place = (torch.special.ndtr(SAMPLE) * 1000).long().clamp(max=999)
    assert scipy.stats.chisquare(torch.bincount(place, minlength=1000).numpy()).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("level", [2.0, 3.0, 4.0])
def test_tails_hold_as_many_as_expected(level):
    share = math.erfc(level / math.sqrt(2))
    seen = int((SAMPLE.abs() > level).sum())
    assert scipy.stats.binomtest(seen, COUNT, share).pvalue > SIGNIFICANCE


def test_both_signs_are_equally_frequent():
    assert scipy.stats.binomtest(int((SAMPLE > 0).sum()), COUNT).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 1024])
def test_neighbours_are_uncorrelated(lag):
    for values in (SAMPLE, SAMPLE.square() - 1, SAMPLE.sign()):
        near, far = values[:-lag], values[lag:]
        correlation = float((near * far).mean() / values.var())
        assert abs(correlation) < SIGMAS / math.sqrt(COUNT)


def test_neighbouring_seeds_and_streams_are_uncorrelated():
    count = 1 << 16
    family = torch.stack(
        [noise.normal(count, seed=seed, stream=stream) for seed in (0, 1, 2, 1 << 32) for stream in (0, 1, 1 << 32)]
    )
    correlations = torch.corrcoef(family).triu(1)
    # 66 pairs: Bonferroni's bound for 1e-4 over all of them is 5.0 standard errors.
    assert float(correlations.abs().max()) < 5.0 / math.sqrt(count)


def test_bits_are_balanced_and_pairwise_uncorrelated():
    words = noise.bits(1 << 17, seed=9)
    columns = torch.stack([(words >> place) & 1 for place in range(32)]).double() * 2 - 1
    count = columns.shape[1]
    # 32 means and 496 pairs: Bonferroni's bound for 1e-4 is 5.2 standard errors.
    assert float(columns.mean(1).abs().max()) < 5.2 / math.sqrt(count)
    products = (columns @ columns.T / count).triu(1)
    assert float(products.abs().max()) < 5.2 / math.sqrt(count)


def test_uniform_is_uniform_on_the_half_open_interval():
    values = noise.uniform(COUNT, seed=3)
    assert float(values.min()) >= 0.0
    assert float(values.max()) < 1.0
    assert torch.equal(values * 2**24, (values * 2**24).round())
    assert scipy.stats.kstest(values.double().numpy(), "uniform").pvalue > SIGNIFICANCE


def test_uniform_by_number_is_that_of_the_run():
    index = torch.tensor([5, 0, 77])
    assert torch.equal(noise.uniform_at(index, seed=3), noise.uniform(100, seed=3)[index])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (0, 1 << 31), (10, 13)])
def test_integers_stay_in_range(low, high):
    values = noise.integers((100, 7), low, high, seed=5)
    assert values.dtype == torch.int64
    assert int(values.min()) >= low
    assert int(values.max()) < high


def test_integers_are_equally_frequent():
    counts = torch.bincount(noise.integers(COUNT, 0, 7, seed=5), minlength=7)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(("low", "high"), [(3, 3), (4, 3), (0, (1 << 31) + 1)])
def test_integers_of_an_impossible_range_are_refused(low, high):
    with pytest.raises(hal.UsageError, match="the range must hold 1 to 2"):
        noise.integers(4, low, high, seed=0)


@pytest.mark.parametrize("draw", [noise.normal, noise.uniform])
def test_fast_mode_repeats_and_differs_by_each_of_its_numbers(draw):
    first = draw(1000, seed=1, stream=2, start=3, mode="fast")
    assert torch.equal(first, draw(1000, seed=1, stream=2, start=3, mode="fast"))
    for other in ({"seed": 2}, {"stream": 3}, {"start": 4}):
        assert not torch.equal(first, draw(1000, **{"seed": 1, "stream": 2, "start": 3} | other, mode="fast"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fast_mode_is_normal(dtype):
    values = noise.normal((1000, 100), seed=5, dtype=dtype, mode="fast")
    assert values.dtype == dtype
    assert scipy.stats.kstest(values.double().flatten().numpy()[:20_000], "norm").statistic < 0.02


def test_levels_of_the_fast_mode_have_the_moments_of_the_normal_distribution():
    levels = _levels().double()
    assert len(levels) == LEVELS
    assert abs(float(levels.mean())) < 1e-9
    assert float(levels.square().mean()) == pytest.approx(1.0, abs=1e-7)
    assert float(levels.pow(4).mean()) == pytest.approx(3.0, abs=1e-3)
    assert float(levels.max()) == -float(levels.min()) < 4.33


def test_fast_mode_draws_every_level_equally_often():
    values = noise.normal(1 << 22, seed=5, mode="fast")
    place = torch.searchsorted(_levels(), values)
    assert torch.equal(_levels()[place], values)
    assert scipy.stats.chisquare(torch.bincount(place, minlength=LEVELS).numpy()).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 1001])
def test_fast_mode_makes_any_number(count):
    assert noise.normal(count, seed=1, mode="fast").shape == (count,)
    assert noise.normal((1, count), seed=1, mode="fast").shape == (1, count)
