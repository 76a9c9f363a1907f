import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srdd.classify import transfer_kind
from srdd.probes.pass_through import measure_pass_through
from srdd.probes.samples import LayerSamples, Sample
from srdd.probes.transfer import describe_transfer

ROWS, UNITS = 80, 50
U = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def block(x):
    """A pre-norm residual block: its update depends on the direction of x, not on its size."""
    return x + 0.7 * np.tanh(np.roll(x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)), 1, axis=1))


def measured(damage=lambda y: y, dtype="bfloat16", scale=2.0**16, layer=block, seed=0, host=None):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(6, size=(ROWS, UNITS))
    samples = LayerSamples(x, damage(layer(x)), U[dtype])
    samples.others["amplified"] = Sample(scale * x, damage(layer(scale * x)), scale)
    return measure_pass_through(samples, host)


def only(units, damage):
    def damaged(y):
        result = y.copy()
        result[:, :units] = damage(y)[:, :units]
        return result

    return damaged


def dead_zone(y):
    return np.where(np.abs(y) < 0.3 * np.abs(y).max(), 0, y)


def saturation(y):
    return np.clip(y, -0.7 * np.abs(y).max(), 0.7 * np.abs(y).max())


def bias(y):
    return y + 0.3 * y.std()


DAMAGES = {
    "dead_zone": dead_zone,
    "saturation": saturation,
    "bias": bias,
    "scale": lambda y: 1.1 * y,
    "sign_flip": lambda y: -y,
    "corruption": lambda y: y + y.std() * np.random.default_rng(9).standard_t(2, size=y.shape),
}


def unbounded(x):
    """A block without a norm: its update grows with x."""
    return x + 0.7 * np.roll(x, 1, axis=1)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_layer_that_passes_its_input_through_on_the_host_alone_is_damaged(damage):
    assert measured(damage, host=block) == measured(damage)
    assert measured(damage).transfer.violation > 1


def test_one_that_does_not_on_the_host_either_is_made_so():
    assert measured(layer=unbounded).transfer.violation > 1
    assert measured(layer=unbounded, host=unbounded) is None
    assert measured(layer=unbounded, host=lambda _stream: None) == measured(layer=unbounded)


@given(st.sampled_from(sorted(U)), st.integers(1, 16), st.integers(0, 50))
def test_a_residual_block_with_three_roundings_stays_within_its_allowance(dtype, bits, seed):
    rng = np.random.default_rng(seed + 1000)

    def rounded(y):
        for _ in range(3):
            y = y * (1 + U[dtype] * rng.choice([-1, 1], y.shape))
        return y

    entry = measured(rounded, dtype, 2.0**bits, seed=seed)
    assert entry.transfer.violation <= 1
    assert entry.transfer.fraction == entry.transfer.units == entry.transfer.coverage == 0


@pytest.mark.parametrize("dtype", sorted(U))
@pytest.mark.parametrize("kind", sorted(DAMAGES))
def test_dense_damage_violates_and_shows_its_kind(kind, dtype):
    entry = measured(DAMAGES[kind], dtype)
    assert entry.transfer.violation > 2
    assert transfer_kind([entry.transfer]) == kind


@pytest.mark.parametrize("units", [1, 5])
@pytest.mark.parametrize("kind", sorted(DAMAGES))
def test_damage_in_a_few_units_is_not_averaged_away(kind, units):
    # Of a clamp or a dead zone relative to the maximum, some units may hold no value that it reaches.
    damage = {"saturation": lambda y: np.clip(y, -y.std(), y.std())}.get(kind, DAMAGES[kind])
    entry = measured(only(units, damage))
    assert entry.transfer.violation > 2
    assert (entry.transfer.units, entry.transfer.width) == (units, UNITS)
    assert transfer_kind([entry.transfer]) == kind


def test_the_numbers_describe_the_violating_elements():
    transfer = measured(only(5, bias)).transfer
    assert transfer.fraction == pytest.approx(5 / UNITS)
    assert transfer.coverage == 1
    assert transfer.offset == pytest.approx(0.3, rel=0.02)
    assert transfer.offset_spread < 0.01
    # Over the geometric mean of root mean square and mean magnitude: of a normal distribution, (2 / pi)^(1/4) std.
    assert transfer.size == pytest.approx(0.3 / (2 / np.pi) ** 0.25, rel=0.05)
    scaled = measured(lambda y: -2 * y).transfer
    assert scaled.ratio == pytest.approx(-2, rel=1e-3)
    assert scaled.ratio_spread < 0.01
    assert measured(dead_zone).transfer.zeroed == 1
    assert measured(saturation).transfer.tied == 1
    assert measured(saturation).transfer.largest


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_response_that_is_not_finite_violates_beyond_any_threshold(value):
    def overflowing(y):
        return np.where(np.abs(y) > 1e4, value, y)

    entry = measured(overflowing)
    assert entry.transfer.violation == 1e12
    assert not entry.growth > 1.5


def test_growth_tells_residual_blocks_from_normalising_ones():
    assert measured().growth == pytest.approx(1, abs=0.2)

    def post_norm(x):
        y = block(x)
        return y / np.sqrt(np.mean(y**2, axis=1, keepdims=True))

    assert measured(layer=post_norm).growth == pytest.approx(2.0**-16, rel=0.2)
    assert measured(layer=post_norm).transfer.violation > 1


def test_growth_does_not_depend_on_how_much_the_layer_adds():
    # The first layer of many models adds more than its input holds.
    assert measured(layer=lambda x: x + 30 * np.sign(x)).growth == pytest.approx(1, abs=0.01)


def test_a_stream_that_could_not_be_amplified_is_not_judged():
    x = np.ones((4, 8))
    assert measure_pass_through(LayerSamples(x, x, U["float32"])) is None


def test_a_zero_block_in_a_zero_stream_is_within_its_allowance():
    x = np.zeros((4, 8))
    samples = LayerSamples(x, x, U["float32"], {"amplified": Sample(x, x, 2.0**16)})
    assert measure_pass_through(samples).transfer.violation == 0


class TestDescribeTransfer:
    def test_an_allowance_is_each_elements_own(self):
        expected, allowance = np.zeros((1, 3)), np.array([[1.0, 2.0, 4.0]])
        transfer = describe_transfer(expected, np.array([[2.0, 2.0, 2.0]]), allowance, 0.0)
        assert (transfer.violation, transfer.units, transfer.fraction) == (2.0, 1, pytest.approx(1 / 3))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite_on_both_sides_agree_and_on_one_side_do_not(self, value):
        one, other = np.array([[1.0, value]]), np.array([[1.0, 2.0]])
        assert describe_transfer(one, one, np.ones((1, 2)), 0.0).violation == 0
        assert describe_transfer(one, other, np.ones((1, 2)), 0.0).violation == 1e12
        assert describe_transfer(other, one, np.ones((1, 2)), 0.0).violation == 1e12

    def test_nothing_at_all_agrees(self):
        empty = np.zeros((0, 4))
        assert describe_transfer(empty, empty, empty, 0.0).violation == 0

    def test_a_value_within_its_allowance_of_what_the_others_came_out_as_did_not_come_through(self):
        expected, allowance = np.array([[1.0], [2.0], [4.0]]), np.array([[0.5], [0.5], [8.0]])
        assert not describe_transfer(expected, np.zeros((3, 1)), allowance, 0.0).spared_large
        assert describe_transfer(expected, np.array([[0.0], [0.0], [4.0]]), allowance, 0.0).spared_large
