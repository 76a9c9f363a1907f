"""Intervals hold what they promise, corrections are Holm's, and nothing is claimed that the tests do not carry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hal.errors import UsageError
from hal.significance import compare, correct, hedges_g, holm, summarise


def sample(seed, count=6, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1.0, count).tolist()


def test_the_interval_holds_the_mean_as_often_as_it_says():
    held = sum(s.low <= 0 <= s.high for s in (summarise(sample(seed)) for seed in range(2000)))
    assert abs(held / 2000 - 0.95) < 0.02


def test_means_and_tests_are_scipys():
    a, b = sample(1), sample(2, mean=2.0)
    entry = compare("x", ("a", a), ("b", b))
    assert entry.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert entry.p_paired == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert entry.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert entry.low < entry.difference < entry.high
    interval = stats.ttest_rel(a, b).confidence_interval()
    assert (entry.paired_low, entry.paired_high) == pytest.approx((interval.low, interval.high))


def test_hedges_g_is_the_difference_in_pooled_deviations_made_smaller():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0, 5.0])
    assert hedges_g(a, b) == pytest.approx(-2.0 * (1 - 3 / 15))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_keeps_the_order(values):
    corrected = holm(values)
    assert all(after >= before for before, after in zip(values, corrected, strict=True))
    ordered = [corrected[place] for place in np.argsort(values, kind="stable")]
    assert ordered == sorted(ordered)
    assert max(corrected) <= 1


def test_of_many_families_without_any_effect_hardly_one_shows_something():
    alarms = 0
    for family in range(60):
        compared = correct(
            [compare("x", ("a", sample(1000 * family + i)), ("b", sample(1000 * family + 500 + i))) for i in range(10)]
        )
        alarms += any(entry.verdict != "not shown" for entry in compared)
    assert alarms <= 10  # 5 % of 60, and four standard deviations


def test_an_effect_that_is_there_is_shown_with_its_direction():
    a = sample(1)
    (entry,) = correct([compare("x", ("a", a), ("b", [value + 1 + 0.01 * i for i, value in enumerate(a)]))])
    assert entry.verdict == "lower"


def test_samples_without_spread_are_compared_as_they_are():
    same, other = compare("x", ("a", [1, 1]), ("b", [1, 1])), compare("x", ("a", [2, 2]), ("b", [1, 1]))
    assert (same.p, same.effect, same.difference) == (1.0, 0.0, 0.0)
    assert math.isnan(other.p)
    assert math.isnan(other.p_paired)
    assert [entry.verdict for entry in correct([same, other])] == ["not shown", "not shown"]


@pytest.mark.parametrize(("values", "words"), [([1.0], "no spread"), ([1.0, math.nan], "not finite")])
def test_what_allows_no_statement_is_refused(values, words):
    with pytest.raises(UsageError, match=words):
        summarise(values)


def test_differences_that_are_equal_but_for_their_rounding_show_nothing():
    first, second = (0.02, 0.04), (0.04, 0.06)
    assert 0.02 - 0.04 != 0.04 - 0.06
    (entry,) = correct([compare("x", ("a", first), ("b", second))])
    assert math.isnan(entry.p_paired)
    assert entry.verdict == "not shown"
