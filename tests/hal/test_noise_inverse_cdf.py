"""From random bits to Gaussian values: exact integers, an accurate quantile, a table no libm can change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

from hal.noise.inverse_cdf import GRID, _rounded_table, normal_from_bits, table_entries

INT32 = st.integers(-(2**31), 2**31 - 1)


def words(values):
    return torch.tensor(values, dtype=torch.int64).to(torch.int32)


def tail_of(values):
    return np.array([value if value >= 0 else -1 - value for value in values], dtype=np.float64)


def probes():
    """Every octave of the tail, its first words, its last, and some between."""
    random = np.random.default_rng(5)
    near = [(1 << octave) + step for octave in range(31) for step in range(-3, 4)]
    spread = [int(2**exponent) for exponent in random.uniform(0, 31, 20_000)]
    return sorted({value for value in near + spread + list(range(300)) if 0 <= value < 2**31})


def test_quantile_error_is_below_the_stated_bound():
    tail = probes()
    values = normal_from_bits(words(tail)).numpy().astype(np.float64)
    exact = -scipy.special.ndtri((np.array(tail) + 0.5) / 2**32)
    assert np.abs(values - exact).max() < 4e-6


def test_values_are_exact_multiples_of_the_grid():
    values = normal_from_bits(words(probes())).to(torch.float64) / GRID
    assert torch.equal(values, values.round())
    assert float(values.max()) < 2**24


def test_values_come_from_integer_arithmetic_alone():
    # The same steps in Python integers, which know neither rounding nor width.
    table_values, table_slopes = _rounded_table()
    for tail in probes()[::37]:
        octave = tail.bit_length() - 1
        kept = tail if octave < 24 else tail & ~0x7F
        if kept == 0:
            expected = table_values[0]
        else:
            octave = kept.bit_length() - 1
            significand = ((kept << 23) >> octave) - (1 << 23)
            row = ((octave + 127) << 8) + (significand >> 15)
            expected = table_values[row] - ((significand & 0x7FFF) * table_slopes[row] >> 17)
        assert int(normal_from_bits(words([tail])).item() / GRID) == expected


@given(word=INT32)
def test_complement_gives_the_opposite_value(word):
    first, second = normal_from_bits(words([word, -1 - word])).tolist()
    assert first == -second


def test_larger_tail_probability_gives_a_smaller_magnitude():
    values = normal_from_bits(words(probes()))
    assert bool((values[1:] <= values[:-1]).all())


def test_extremes():
    values = normal_from_bits(words([0, -1, 2**31 - 1, -(2**31)]))
    assert values.abs().max() < 6.34
    assert values[0] == -values[1] > 6.3
    assert values[2].item() == pytest.approx(0.0, abs=1e-6)
    assert values[3] == -values[2]


def test_products_of_the_interpolation_fit_an_int32():
    values, slopes = _rounded_table()
    assert max(slopes) * 0x7FFF < 2**31
    assert min(slopes) >= 0
    assert max(values) < 2**24


def test_no_table_entry_is_near_enough_to_a_tie_for_a_platform_to_round_it_otherwise():
    entries = np.array(list(table_entries()))
    distance = np.abs(entries - np.floor(entries) - 0.5)
    # Double precision leaves an error near 1e-8 in entries below 2**24.
    assert distance.min() > 1e-6


def test_table_is_frozen():
    text = repr(_rounded_table()).encode()
    assert hashlib.sha256(text).hexdigest() == "305a10a38400dd3a32d2eb08985a09ecab5ed2af614ff0988bc9ea448a7d28dd"


def test_input_is_not_changed():
    source = words([1, -5, 2**30])
    before = source.clone()
    normal_from_bits(source)
    assert torch.equal(source, before)
