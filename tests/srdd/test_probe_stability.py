from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srdd.probes.samples import LayerSamples, Sample
from srdd.probes.stability import measure_stability
from srdd.thresholds import SPIKE_CHANGED, UNSTABLE_ELEMENT, UNSTABLE_UNIT

U = 2.0**-8  # bfloat16
ROWS, UNITS = 60, 50


def samples(change=0.0, scale=1.0, seed=0):
    """A layer whose second repetition differs from its first run by `change`."""
    rng = np.random.default_rng(seed)
    stream = scale * rng.normal(size=(ROWS, UNITS))
    output = stream + 0.3 * scale * rng.normal(size=(ROWS, UNITS))
    made = LayerSamples(stream, output, U)
    made.add("repeat_0", Sample(stream, output, 0.0))
    made.add("repeat_1", Sample(stream, output + change, 0.0))
    made.add("perturbed", Sample(stream, output + 100.0, 0.1))  # another probe's: must not be read
    return made


def test_a_layer_that_repeats_itself_scores_zero():
    stability = measure_stability(samples())
    assert stability.trials == 3
    assert (stability.spread, stability.unit, stability.element, stability.changed) == (0, 0, 0, 0)


@given(st.floats(0.01, 1.0), st.integers(0, 20))
def test_differences_of_one_rounding_stay_below_the_thresholds(share, seed):
    made = samples(seed=seed)
    rng = np.random.default_rng(seed + 100)
    rounding = share * U * np.abs(made.output) * rng.choice([-1, 0, 1], made.output.shape)
    stability = measure_stability(samples(rounding, seed=seed))
    assert stability.unit < UNSTABLE_UNIT / 2
    assert stability.element < UNSTABLE_ELEMENT / 2
    assert stability.changed == 0


@given(st.integers(-40, 40))
def test_scores_do_not_depend_on_the_scale_of_the_stream(exponent):
    noise = 0.1 * np.random.default_rng(1).normal(size=(ROWS, UNITS))
    plain, scaled = (measure_stability(samples(scale * noise, scale)) for scale in (1.0, 2.0**exponent))
    # Which bits differ is the only thing that a power of two may change.
    assert replace(scaled, glitch=None) == replace(plain, glitch=None)


def test_noise_over_all_elements_is_seen_as_such():
    noise = 0.3 * np.random.default_rng(1).normal(size=(ROWS, UNITS))
    stability = measure_stability(samples(noise))
    assert stability.spread == pytest.approx(0.3 / 1.044, rel=0.05)
    assert stability.unit > UNSTABLE_UNIT
    assert stability.changed > 0.9


def test_one_noisy_unit_is_not_averaged_away():
    noise = np.zeros((ROWS, UNITS))
    noise[:, 7] = 0.1 * np.random.default_rng(1).normal(size=ROWS)
    stability = measure_stability(samples(noise))
    assert stability.unit > 2 * UNSTABLE_UNIT
    assert stability.unit < UNSTABLE_UNIT * np.sqrt(UNITS)  # over all units it would be below the threshold
    assert stability.changed > 0.8


def test_one_spike_is_a_single_element():
    spike = np.zeros((ROWS, UNITS))
    spike[3, 7] = 40.0
    stability = measure_stability(samples(spike))
    assert stability.element > UNSTABLE_ELEMENT
    assert stability.changed == pytest.approx(1 / ROWS)
    assert stability.changed < SPIKE_CHANGED


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_repetition_that_is_not_finite_is_unstable_beyond_any_threshold(value):
    broken = np.zeros((ROWS, UNITS))
    broken[3, 7] = value
    stability = measure_stability(samples(broken))
    assert stability.unit > UNSTABLE_UNIT
    assert stability.element > UNSTABLE_ELEMENT
    assert stability.spread > 0
    assert stability.changed > 0


def test_an_all_zero_layer_is_stable():
    zero = np.zeros((4, 8))
    made = LayerSamples(zero, zero, U)
    for trial in range(2):
        made.add(f"repeat_{trial}", Sample(zero, zero, 0.0))
    stability = measure_stability(made)
    assert (stability.unit, stability.element, stability.spread) == (0, 0, 0)


def test_repeats_that_are_equal_are_counted_and_not_kept():
    made = samples()
    for trial in range(2, 1000):
        made.add(f"repeat_{trial}", Sample(made.stream, made.output, 0.0))
    assert list(made.others) == ["perturbed"]
    assert measure_stability(made).trials == 1001


def test_the_odd_one_of_many_runs_is_the_glitch():
    spike = np.zeros((ROWS, UNITS))
    spike[3] = 5.0
    made = samples(spike)
    stability = measure_stability(made)
    assert stability.glitch.violation > 1
    assert stability.glitch.fraction == pytest.approx(1 / ROWS)
