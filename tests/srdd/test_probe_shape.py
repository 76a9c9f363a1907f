import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from srdd.evidence import tie_limit
from srdd.probes.samples import LayerSamples
from srdd.probes.shape import measure_shape
from srdd.thresholds import PILE_UP

U = {"float32": 2.0**-24, "bfloat16": 2.0**-8}


def normal(rows=200, units=64, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, units))


def rounded(values, unit_roundoff):
    """Values as a dtype with that unit roundoff holds them."""
    spacing = 2 * unit_roundoff * 2.0 ** np.floor(np.log2(np.abs(values)))
    return np.round(values / spacing) * spacing


def shape_of(output, unit_roundoff=U["float32"]):
    return measure_shape(LayerSamples(normal(*output.shape, seed=99), output, unit_roundoff))


def shape_after(stream, output):
    return measure_shape(LayerSamples(stream, output, U["float32"]))


def test_kurtosis_is_fishers():
    heavy = np.random.default_rng(0).standard_t(5, size=(200, 64))
    assert shape_of(heavy).kurtosis == pytest.approx(stats.kurtosis(heavy.ravel()))
    assert shape_of(normal()).kurtosis == pytest.approx(0, abs=0.1)


def test_a_dense_clamp_lowers_kurtosis_and_piles_up_at_the_edge():
    heavy = np.random.default_rng(0).standard_t(4, size=(400, 64))
    clamped = np.clip(heavy, -2, 2)
    assert shape_of(clamped).kurtosis < shape_of(heavy).kurtosis
    assert shape_of(clamped).pile_up > PILE_UP
    assert shape_of(heavy).pile_up <= PILE_UP


def test_a_clamp_ties_its_values_at_the_maximum():
    clamped = np.clip(normal(), -2, 2)
    shape = shape_of(clamped)
    assert shape.ties == int((np.abs(normal()) >= 2).sum()) > 100
    assert shape.ties > 10 * shape.ties_expected


@given(st.sampled_from(sorted(U)), st.integers(0, 200))
def test_chance_ties_of_a_healthy_layer_are_expected(dtype, seed):
    shape = shape_of(rounded(normal(seed=seed), U[dtype]), U[dtype])
    assert shape.ties <= tie_limit(shape.ties_expected)


@given(st.integers(0, 200))
def test_ties_of_many_values_near_the_maximum_in_a_short_format_are_expected(seed):
    crowded = np.random.default_rng(seed).uniform(0.01, 0.999, size=(200, 64))
    shape = shape_of(rounded(crowded, U["bfloat16"]), U["bfloat16"])
    assert tie_limit(0) < shape.ties <= tie_limit(shape.ties_expected)


def test_equal_rows_count_once():
    output = np.clip(normal(), -2, 2)
    once, twice = shape_of(output), shape_of(np.concatenate([output, output]))
    assert once == twice
    assert once.elements == output.size


def test_zeros_and_small_values_are_counted_apart():
    output = np.array([[0.0, 0.0, 1.0, 10.0], [0.0, 2.0, -10.0, 10.5]])
    shape = shape_of(output)
    assert (shape.zeros, shape.small, shape.elements) == (3, 2, 8)
    assert shape.maximum == 10.5
    assert shape.std == pytest.approx(output.std())


@given(st.integers(-30, 30))
def test_shape_does_not_depend_on_scale(exponent):
    plain, scaled = shape_of(normal()), shape_of(normal() * 2.0**exponent)
    for name in ("kurtosis", "pile_up", "ties", "ties_expected", "zeros", "small"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9)


def test_an_all_zero_layer_has_a_shape():
    shape = shape_of(np.zeros((4, 8)))
    assert (shape.std, shape.maximum, shape.kurtosis, shape.pile_up) == (0, 0, 0, 1)
    assert shape.zeros == shape.elements == 8


def test_a_single_value_has_a_shape():
    shape = shape_of(np.array([[3.0]]))
    assert (shape.ties, shape.zeros, shape.kurtosis) == (1, 0, 0)


def test_rows_with_one_input_count_once_among_the_ties():
    stream = np.full((50, 8), 3.0)
    output = stream + 0.5 * np.arange(8) + 1e-6 * normal(50, 8)
    output[:, 7] = 9.0
    assert shape_after(stream, output).ties == 1


def test_zeros_that_came_in_as_zeros_are_not_the_layers_own():
    stream = normal(50, 8)
    stream[:, 2] = 0
    output = stream.copy()
    output[:, 5] = 0
    assert shape_after(stream, output).zeros == 50


def test_rows_that_differ_by_rounding_alone_count_once():
    row = np.random.default_rng(0).normal(size=64)
    alike = row * (1 + 1e-7 * np.random.default_rng(1).normal(size=(50, 64)))
    alike[:, np.abs(row).argmax()] = row[np.abs(row).argmax()]
    assert measure_shape(LayerSamples(alike, alike, 2.0**-24)).ties == 1
