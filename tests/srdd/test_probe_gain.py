import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srdd.probes.gain import measure_gain
from srdd.probes.samples import LayerSamples, Sample

ROWS, UNITS, OFFSET = 100, 50, 50.0


def identity(x):
    return x


def samples(layer, offset=OFFSET):
    """A layer under the gain probe's excitations."""
    rng = np.random.default_rng(0)
    stream = rng.normal(size=(ROWS, UNITS))
    inputs = {"perturbed": (stream + 0.1 * rng.normal(size=stream.shape), 0.1)}
    inputs |= {"offset_up": (stream + offset, offset), "offset_down": (stream - offset, -offset)}
    others = {name: Sample(x, layer(x), size) for name, (x, size) in inputs.items()}
    return LayerSamples(stream, layer(stream), 2.0**-24, others)


@given(st.floats(-8, 8).filter(lambda gain: abs(gain) > 0.01))
def test_the_gain_of_a_linear_layer_is_its_factor(factor):
    gain = measure_gain(samples(lambda x: factor * x))
    assert gain.gain == pytest.approx(abs(factor))
    assert gain.lowest == pytest.approx(factor)
    assert gain.highest == pytest.approx(factor)


def test_a_dead_layer_has_no_gain_at_all():
    gain = measure_gain(samples(np.zeros_like))
    assert (gain.gain, gain.lowest, gain.highest) == (0, 0, 0)


def test_a_healthy_residual_layer_has_gain_near_one_and_no_stuck_unit():
    gain = measure_gain(samples(lambda x: x + 0.1 * np.tanh(x)))
    assert 1 <= gain.gain < 1.2
    assert 0.99 < gain.lowest <= gain.highest < 1.01
    assert gain.discrete == 0


@given(st.integers(1, 20))
def test_units_that_do_not_follow_the_offset_are_counted_not_averaged(stuck):
    def clamped(x):
        result = x.copy()
        result[:, :stuck] = np.clip(x[:, :stuck], -3, 3)
        return result

    gain = measure_gain(samples(clamped))
    assert gain.discrete == stuck
    assert gain.lowest < 0.2
    assert gain.highest == pytest.approx(1)


def test_units_stuck_in_one_direction_are_counted():
    gain = measure_gain(samples(lambda x: np.minimum(x, np.where(np.arange(UNITS) < 3, 5.0, np.inf))))
    assert gain.discrete == 3


def test_units_just_above_85_percent_are_not_stuck():
    share = np.where(np.arange(UNITS) < 4, 0.86, 1.0)
    assert measure_gain(samples(lambda x: share * x)).discrete == 0
    share = np.where(np.arange(UNITS) < 4, 0.84, 1.0)
    assert measure_gain(samples(lambda x: share * x)).discrete == 4


def test_excitations_that_could_not_be_made_leave_nan():
    made = samples(identity)
    made.others.clear()
    gain = measure_gain(made)
    assert all(math.isnan(value) for value in (gain.gain, gain.lowest, gain.highest))
    assert gain.discrete == 0


def test_a_perturbation_lost_to_rounding_has_no_gain():
    made = samples(identity)
    made.others["perturbed"] = Sample(made.stream, made.output, 0.1)
    assert math.isnan(measure_gain(made).gain)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_response_that_is_not_finite_is_no_crash(value):
    def overflowing(x):
        return np.where(np.abs(x) > 40, value, x)

    made = samples(overflowing)
    assert measure_gain(made).gain == pytest.approx(1)
    assert not math.isfinite(measure_gain(made).lowest)
    made.others["perturbed"].output[0, 0] = value
    assert not math.isfinite(measure_gain(made).gain)
