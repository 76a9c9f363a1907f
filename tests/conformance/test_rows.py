"""The figures of a comparison, against what they are by definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conformance.evidence import Comparison, Evidence, Mismatch, digest_arguments, digest_tensors
from conformance.formats import FORMATS, unit_in_last_place
from conformance.rows import make_row


def row_of(result, expected, allowance=None, dtype=torch.float32):
    allowed = None if allowance is None else torch.tensor(allowance, dtype=torch.float64).expand(len(expected))
    return make_row(
        Comparison("part", torch.tensor(result, dtype=dtype), torch.tensor(expected, dtype=torch.float64), allowed), 0
    )


@pytest.mark.parametrize("dtype", list(FORMATS), ids=str)
@given(exponent=st.integers(-160, 130), fraction=st.floats(1.0, 2.0, exclude_max=True))
def test_a_unit_in_the_last_place_is_the_distance_to_the_next_number(dtype, exponent, fraction):
    value = torch.tensor(math.ldexp(fraction, exponent), dtype=torch.float64)
    below = value.to(dtype)
    if not bool(below.isfinite()) or below.double() > value:
        return
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    above = (below.view(integer) + 1).view(dtype)
    if bool(above.isfinite()) and below.double() > 0:
        assert float(unit_in_last_place(value, dtype)) == float(above.double() - below.double())


def test_relative_errors_leave_small_values_out_and_count_them():
    small = 2.0**-15
    row = row_of([1.001, 2.0, small + 2.0**-29, small], [1.0, 2.0, small, small], 1.0)
    assert row.errors.mare == pytest.approx(1e-3, rel=1e-4)
    assert row.errors.mere == pytest.approx(5e-4, rel=1e-4)
    assert row.errors.small_errors == 1
    assert row.errors.rmse == pytest.approx(5e-4, rel=1e-3)
    assert row.single_mere == pytest.approx((1e-3 + 2.0**-29 / (small + 1e-7)) / 4, rel=1e-3)


def test_excess_is_the_largest_share_of_the_allowance():
    assert row_of([1.0, 2.5], [1.0, 2.0], 0.25).excess == 2.0
    assert row_of([1.0], [1.0], 0.0).excess == 0.0
    assert row_of([1.5], [1.0], 0.0).excess == math.inf


def test_equality_takes_zeros_of_both_signs_and_nothing_else():
    assert row_of([0.0, -0.0], [-0.0, 0.0]).excess == 0.0
    row = row_of([1.0, 1.0 + 2.0**-23], [1.0, 1.0])
    assert row.excess == math.inf
    assert row.example == "element [1]: got 1.00000012, expected 1"


def test_values_beyond_the_dtype_are_expected_as_it_has_them():
    assert row_of([math.inf], [1e6], 1.0, torch.float16).misplaced == 0
    assert row_of([65504.0], [1e6], 1.0, torch.float16).misplaced == 1
    assert row_of([65504.0], [65510.0], 16.0, torch.float16).misplaced == 0


def test_kinds_of_non_finite_values_are_counted_apart():
    row = row_of([math.inf, math.nan, 1.0, math.nan], [math.nan, math.nan, math.inf, 1.0], 1.0)
    assert (row.misplaced, row.other_kind) == (2, 1)


def test_integers_are_equal_or_wrong_to_the_last_bit():
    large = (1 << 62) + 1
    same = Comparison("part", torch.tensor([large]), torch.tensor([large]))
    other = Comparison("part", torch.tensor([large]), torch.tensor([large - 1]))
    assert make_row(same, 0).excess == 0
    assert make_row(other, 0).excess == math.inf


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=20))
def test_the_correctly_rounded_result_is_half_a_unit_off_at_most(values):
    expected = torch.tensor(values, dtype=torch.float64) / 3
    for dtype in FORMATS:
        row = make_row(Comparison("part", expected.to(dtype), expected, torch.ones_like(expected)), 0)
        assert row.max_ulp <= 0.5
        assert row.errors == row.ideal


def test_beside_peers_twice_the_largest_of_their_errors_is_allowed():
    expected = torch.ones(100, dtype=torch.float64)
    peers = [expected.float() + 1e-4, expected.float() + 2e-4]
    evidence = Evidence()
    evidence.beside("near", expected.float() + 3.9e-4, expected, peers)
    evidence.beside("far", expected.float() + 4.1e-4, expected, peers)
    near, far = (make_row(comparison, 0).excess for comparison in evidence.comparisons)
    assert near < 1 < far


def test_a_result_of_another_shape_is_a_mismatch():
    with pytest.raises(Mismatch, match=r"result has shape \(2,\), expected \(3,\)"):
        Evidence().equal("result", torch.zeros(2), torch.zeros(3))


def test_results_of_one_device_are_compared_with_each_other():
    Evidence().same("twice", torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan]))
    with pytest.raises(Mismatch, match=r"twice: .* differ by up to 0.5"):
        Evidence().same("twice", torch.tensor([1.0]), torch.tensor([1.5]))


def test_digests_tell_values_shapes_and_dtypes_apart_but_not_signs_of_zero():
    zero = torch.tensor([0.0, math.nan])
    assert digest_tensors([zero]) == digest_tensors([torch.tensor([-0.0, -math.nan])])
    others = [torch.tensor([0.0]), torch.tensor([[0.0]]), torch.tensor([0]), torch.tensor([2.0**-149])]
    assert len({digest_tensors([other]) for other in others}) == 4
    assert digest_arguments((zero, 0.1)) != digest_arguments((zero, 0.2))
