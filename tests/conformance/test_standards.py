"""The published limits, each from both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conformance.recheck import recheck
from conformance.rows import Errors, Row
from conformance.standards import STANDARDS, Dual, find_standard
from hal.errors import UsageError

CLEAN = Row("result", 0, "float16", False, 1000, ideal=Errors(mare=2.0**-11, mere=2.0**-12, rmse=1e-4))
# Figure, dtype, limit by the documents.
LIMITS = [
    ("ulp", "float16", "over_1_ulp", 0.001),
    ("ulp", "bfloat16", "over_1_ulp", 0.001),
    ("ascend-single", "float16", "single_mere", 2.0**-10),
    ("ascend-single", "float16", "single_mare", 10 * 2.0**-10),
    ("ascend-single", "bfloat16", "single_mere", 2.0**-7),
    ("ascend-single", "float32", "single_mere", 2.0**-13),
    ("mixed-2026", "float32", "mixed_excess", 1.0),
    ("bound", "float32", "excess", 1.0),
]


def test_the_profiles_are_those_of_the_contract():
    assert list(STANDARDS) == [
        "bound", "ulp", "ascend-single", "mixed-2026", "ascend-dual-l0", "ascend-dual-l1", "ascend-dual-l2",
    ]  # fmt: skip
    assert all("(" in standard.about for name, standard in STANDARDS.items() if name != "bound")


@pytest.mark.parametrize(("name", "dtype", "figure", "limit"), LIMITS)
def test_a_figure_passes_up_to_its_limit(name, dtype, figure, limit):
    row = replace(CLEAN, dtype=dtype)
    assert STANDARDS[name].judge(replace(row, **{figure: limit * 0.999})).passed
    judgement = STANDARDS[name].judge(replace(row, **{figure: limit * 1.001}))
    assert not judgement.passed
    assert "limit" in judgement.reason


def test_ulp_in_float32_passes_by_its_mean_or_by_its_share():
    ulp, row = STANDARDS["ulp"], replace(CLEAN, dtype="float32")
    assert ulp.judge(replace(row, mean_ulp=63.0, over_32_ulp=0.5)).passed
    assert ulp.judge(replace(row, mean_ulp=1000.0, over_32_ulp=0.049)).passed
    assert not ulp.judge(replace(row, mean_ulp=65.0, over_32_ulp=0.051)).passed


def test_mixed_tolerance_wants_99_percent_inside():
    mixed = STANDARDS["mixed-2026"]
    assert mixed.judge(replace(CLEAN, mixed_matched=0.9901)).passed
    assert not mixed.judge(replace(CLEAN, mixed_matched=0.9899)).passed


def test_a_device_no_worse_than_the_reference_passes_where_both_are_outside():
    single = STANDARDS["ascend-single"]
    peer = replace(CLEAN, single_mere=1.0, single_mare=100.0)
    assert single.judge(replace(CLEAN, single_mere=1.9, single_mare=900.0), peer).passed
    assert not single.judge(replace(CLEAN, single_mere=2.1), peer).passed
    assert not single.judge(replace(CLEAN, single_mare=1100.0), peer).passed
    assert not STANDARDS["bound"].judge(replace(CLEAN, excess=1.1), replace(CLEAN, excess=50.0)).passed


@pytest.mark.parametrize(("level", "mare", "mean"), [("l0", 10, 2), ("l1", 5, 1.5), ("l2", 2, 1.2)])
def test_dual_ratios(level, mare, mean):
    dual = STANDARDS[f"ascend-dual-{level}"]
    peer = replace(CLEAN, errors=Errors(mare=0.01, mere=0.001, rmse=0.002))
    for figure, value, limit in (("mare", 0.01, mare), ("mere", 0.001, mean), ("rmse", 0.002, mean)):
        inside = replace(CLEAN, errors=replace(peer.errors, **{figure: value * limit * 0.999}))
        outside = replace(CLEAN, errors=replace(peer.errors, **{figure: value * limit * 1.001}))
        assert dual.judge(inside, peer).passed
        assert f"{figure.upper()} ratio" in dual.judge(outside, peer).reason


def test_dual_counts_small_values_against_at_least_one_error():
    dual = STANDARDS["ascend-dual-l2"]
    assert dual.judge(replace(CLEAN, errors=Errors(small_errors=2)), CLEAN).passed
    assert not dual.judge(replace(CLEAN, errors=Errors(small_errors=3)), CLEAN).passed
    assert dual.judge(
        replace(CLEAN, errors=Errors(small_errors=20)), replace(CLEAN, errors=Errors(small_errors=10))
    ).passed


def test_no_device_is_asked_to_round_better_than_correctly():
    dual = STANDARDS["ascend-dual-l2"]
    lucky = replace(CLEAN, errors=Errors())
    assert dual.judge(replace(CLEAN, errors=CLEAN.ideal), lucky).passed
    assert not dual.judge(replace(CLEAN, errors=Errors(mare=2.0**-9)), lucky).passed


@pytest.mark.parametrize("name", list(STANDARDS))
def test_misplaced_infinities_and_unequal_exact_results_fail_everywhere(name):
    standard = STANDARDS[name]
    assert "finite on one side only" in standard.judge(replace(CLEAN, misplaced=1), CLEAN).reason
    assert "equality was asked for" in standard.judge(replace(CLEAN, exact=True, excess=float("inf")), CLEAN).reason
    assert standard.judge(replace(CLEAN, exact=True), CLEAN).passed


def test_an_unknown_standard_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown standard 'ulps': choose one of bound, ulp, ascend-single"):
        find_standard("ulps")


def rows_with(errors):
    return [replace(CLEAN, seed=seed, errors=Errors(mare=e, mere=e, rmse=e)) for seed, e in enumerate(errors)]


def dual(level="l2"):
    standard = STANDARDS[f"ascend-dual-{level}"]
    assert isinstance(standard, Dual)
    return standard


def test_recheck_clears_a_device_that_is_worse_in_half_of_the_draws():
    mine = rows_with([1.0 if seed % 2 else 4.0 for seed in range(1001)])
    theirs = rows_with([4.0 if seed % 2 else 1.0 for seed in range(1000)] + [4.0])
    assert recheck(dual(), mine, theirs) is None


def test_recheck_condemns_a_device_whose_median_is_worse():
    reason = recheck(dual(), rows_with([1.1] * 150 + [1.2] * 150), rows_with([1.0] * 300))
    assert "the median over 300 seeds is above 1" in reason


def test_recheck_of_too_few_seeds_fails():
    assert "199 seeds are too few" in recheck(dual(), rows_with([1.0] * 199), rows_with([1.0] * 199))
