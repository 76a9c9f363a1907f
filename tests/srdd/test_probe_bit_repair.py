import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srdd.faults.bits import flip_bits, stick_bits
from srdd.probes.bit_repair import repaired_by_one_bit

FORMATS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def values(dtype, seed=0):
    return torch.randn(400, 1, generator=torch.Generator().manual_seed(seed)).to(dtype)


def repair(x, y, dtype):
    expected, actual = x.double().numpy().ravel(), y.double().numpy().ravel()
    return repaired_by_one_bit(expected, actual, 10 * FORMATS[dtype] * np.abs(expected), FORMATS[dtype])


@given(st.sampled_from(sorted(FORMATS, key=str)), st.integers(0, 31), st.integers(0, 5))
def test_a_flipped_bit_is_seen_whichever_it_is(dtype, bit, seed):
    x = values(dtype, seed)
    flipped = flip_bits(x, str(bit % torch.finfo(dtype).bits), 0)
    assert repair(x, flipped, dtype).share == 1


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_the_level_of_a_stuck_bit_is_the_same_everywhere_and_of_a_flipped_one_it_is_not(dtype):
    x = values(dtype)
    for level in (0, 1):
        stuck = stick_bits(x, "6", level, 0)
        moved = stuck != x
        assert repair(x[moved], stuck[moved], dtype).level == level
    assert 0.2 < repair(x, flip_bits(x, "6", 0), dtype).level < 0.8


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(
    "damage", [lambda x: x + 0.3, lambda x: 1.1 * x, torch.zeros_like, lambda x: x.clamp(-0.7, 0.7)]
)
def test_other_damage_is_rarely_one_bit_away(damage, dtype):
    x = values(dtype)
    y = damage(x)
    assert repair(x[y != x], y[y != x], dtype).share < 0.5


def test_a_formats_width_must_be_known():
    unknown = repaired_by_one_bit(np.ones(3), np.zeros(3), np.zeros(3), 2.0**-53)
    assert unknown.share == 0
    assert math.isnan(unknown.level)
    assert repaired_by_one_bit(np.ones(0), np.ones(0), np.ones(0), 2.0**-8).share == 0
