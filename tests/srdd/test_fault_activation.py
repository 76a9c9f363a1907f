"""Each kind's formula, against numpy in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import UsageError
from srdd.faults import ActiveFault, Fault
from srdd.faults.mask import unit_mask
from srdd.faults.specification import KINDS, MODES

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
RANDOM = ("noise", "spike", "non_determinism")
MAGNITUDES = st.floats(0.01, 0.95)
OF_ACTIVATIONS = [kind for kind in KINDS if kind != "wrong_constant"]
ALTERING = [kind for kind in OF_ACTIVATIONS if kind != "flush_subnormals"]  # ordinary data has no subnormal numbers


def healthy(rows=500, units=400, seed=5, dtype=torch.float64):
    return torch.randn(rows, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def bits(x):
    return x.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()])


def through(x, kind, **options):
    return ActiveFault(Fault(kind, 0, **options))(x).numpy()


@given(MAGNITUDES)
def test_dead_zone_zeroes_what_is_small_against_the_maximum(magnitude):
    x = healthy(20, 40)
    values = x.numpy()
    expected = np.where(np.abs(values) < magnitude * np.abs(values).max(), 0, values)
    assert np.array_equal(through(x, "dead_zone", magnitude=magnitude), expected)


@given(MAGNITUDES)
def test_saturation_clamps_below_the_maximum(magnitude):
    x = healthy(20, 40)
    top = (1 - magnitude) * np.abs(x.numpy()).max()
    np.testing.assert_allclose(through(x, "saturation", magnitude=magnitude), np.clip(x.numpy(), -top, top), rtol=1e-14)


def test_relative_saturation_follows_each_batch_and_absolute_keeps_the_first():
    x = healthy(20, 40)
    relative, absolute = (ActiveFault(Fault("saturation", 0, absolute=fixed)) for fixed in (False, True))
    limit = float(0.7 * x.abs().max())
    assert torch.equal(relative(x), absolute(x))
    assert float(absolute(10 * x).abs().max()) == pytest.approx(limit)
    assert float(relative(10 * x).abs().max()) == pytest.approx(10 * limit)


@given(MAGNITUDES)
def test_bias_adds_a_share_of_the_standard_deviation(magnitude):
    x = healthy(20, 40)
    expected = x.numpy() + magnitude * np.std(x.numpy())
    np.testing.assert_allclose(through(x, "bias", magnitude=magnitude), expected, atol=1e-7)


def test_noise_has_a_share_of_the_mean_magnitude():
    x = 3 * healthy()
    added = (through(x, "noise") - x.numpy()) / (0.3 * np.abs(x.numpy()).mean())
    assert abs(added.mean()) < 0.02
    assert added.std() == pytest.approx(1, abs=0.01)
    assert abs(np.corrcoef(added.ravel(), x.numpy().ravel())[0, 1]) < 0.02


def test_spikes_are_rare_and_ten_times_the_maximum():
    x = healthy()
    spiked = through(x, "spike", magnitude=0.9)
    hit = spiked != x.numpy()
    assert hit.mean() == pytest.approx(0.009, rel=0.1)
    assert spiked[hit].std() == pytest.approx(10 * np.abs(x.numpy()).max(), rel=0.1)


def in_base_units(mode, factor=5.0):
    x = healthy()
    return (through(x, "non_determinism", mode=mode, factor=factor) - x.numpy()) / (0.01 * np.std(x.numpy()))


def test_amplified_and_suppressed_noise_differ_by_the_factor_either_way():
    assert in_base_units("amplified").std() == pytest.approx(5, rel=0.02)
    assert in_base_units("suppressed").std() == pytest.approx(1 / 5, rel=0.02)


def test_inconsistent_noise_is_of_another_size_each_time_within_the_factor():
    sizes = [in_base_units("inconsistent").std() for _ in range(8)]
    assert max(sizes) / min(sizes) > 1.05
    assert all(1 / 5.2 < size < 5.2 for size in sizes)


def test_biased_noise_has_a_mean_within_the_factor():
    drifts = [in_base_units("biased") for _ in range(8)]
    assert all(drift.std() == pytest.approx(1, rel=0.02) for drift in drifts)
    assert all(-0.05 < drift.mean() < 5.05 for drift in drifts)
    assert np.std([drift.mean() for drift in drifts]) > 0.1


def test_correlated_noise_is_the_same_in_every_unit_of_a_row():
    noise = in_base_units("correlated")
    np.testing.assert_allclose(noise, np.broadcast_to(noise[:, :1], noise.shape), atol=1e-9)
    assert noise[:, 0].std() == pytest.approx(5, rel=0.15)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", OF_ACTIVATIONS)
def test_untouched_units_are_bit_identical_and_form_and_input_stay(kind, dtype):
    x = healthy(32, 100, dtype=dtype)
    x[0, :] = -0.0
    before = x.clone()
    fault = ActiveFault(Fault(kind, 0, sparsity=0.1, seed=4))
    result = fault(x)
    outside = ~unit_mask(100, 0.1, 0, 4)
    assert torch.equal(bits(result)[:, outside], bits(x)[:, outside])
    assert (result.dtype, result.shape) == (x.dtype, x.shape)
    assert torch.equal(bits(x), bits(before))


@pytest.mark.parametrize("kind", ALTERING)
def test_the_mask_is_fixed_for_the_faults_life(kind):
    size = {"magnitude": 0.9} if kind in ("dead_zone", "saturation", "bias", "noise", "spike") else {}
    fault = ActiveFault(Fault(kind, 0, sparsity=0.2, **size))
    touched = torch.zeros(100, dtype=torch.bool)
    for seed in range(10):
        x = healthy(300, 100, seed=seed)
        touched |= (fault(x) != x).any(dim=0)
    assert torch.equal(touched, unit_mask(100, 0.2, 0, 0))


@pytest.mark.parametrize("kind", ALTERING)
def test_changed_counts_the_elements_that_differ(kind):
    fault, x = ActiveFault(Fault(kind, 0, sparsity=0.5)), healthy(200, 100)
    differing = [int(((fault(x) != x) & ~x.isnan()).sum()) for _ in range(3)]
    assert (fault.calls, fault.changed) == (3, sum(differing))
    assert fault.changed > 0


@pytest.mark.parametrize("kind", OF_ACTIVATIONS)
def test_a_value_that_is_already_nan_is_not_counted_as_changed(kind):
    fault, x = ActiveFault(Fault(kind, 0, units=1)), healthy(8, 100)
    x[:] = torch.nan
    fault(x)
    assert fault.changed == 0


@pytest.mark.parametrize("kind", OF_ACTIVATIONS)
def test_no_rows_are_no_trouble(kind):
    # An expert to which no token was routed.
    fault = ActiveFault(Fault(kind, 0))
    assert fault(torch.zeros(0, 16)).shape == (0, 16)
    assert fault.changed == 0


@pytest.mark.parametrize("mode", MODES["non_determinism"])
@pytest.mark.parametrize("kind", RANDOM)
def test_random_kinds_differ_from_run_to_run_whatever_the_programs_seed(kind, mode):
    options = {"mode": mode} if kind == "non_determinism" else {}
    x, results = healthy(200, 200), []
    for _ in range(2):
        torch.manual_seed(0)
        fault = ActiveFault(Fault(kind, 0, **options))
        results += [fault(x), fault(x)]
    assert all(not torch.equal(first, second) for first, second in itertools.pairwise(results))


@pytest.mark.parametrize("kind", [kind for kind in OF_ACTIVATIONS if kind not in RANDOM])
def test_the_other_kinds_repeat_themselves_whatever_the_programs_seed(kind):
    x, results = healthy(20, 100), []
    for seed in range(2):
        torch.manual_seed(seed)
        results.append(ActiveFault(Fault(kind, 0, sparsity=0.3))(x))
    assert torch.equal(*map(bits, results))


@pytest.mark.parametrize("kind", OF_ACTIVATIONS)
def test_the_programs_own_generator_is_not_moved(kind):
    torch.manual_seed(3)
    expected = torch.rand(8)
    torch.manual_seed(3)
    ActiveFault(Fault(kind, 0, sparsity=0.3))(healthy(20, 100))
    assert torch.equal(torch.rand(8), expected)


def test_the_standard_deviation_of_large_float16_values_does_not_overflow():
    x = 3000 * healthy(100, 100, dtype=torch.float16)
    assert np.isfinite(through(x, "bias", magnitude=0.1)).all()


def test_random_kinds_repeat_themselves_when_their_draws_are_seeded():
    x = healthy(20, 100)
    for kind in RANDOM:
        first, again, other = (ActiveFault(Fault(kind, 0, draws=draws))(100 * x) for draws in (7, 7, 8))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bit", [0, 3, 11])
def test_a_flipped_bit_is_that_bit_and_flips_back(dtype, bit):
    x = healthy(16, 32, dtype=dtype)
    flip = ActiveFault(Fault("bit_flip", 0, bits=str(bit)))
    flipped = flip(x)
    assert torch.equal(bits(flipped) ^ bits(x), torch.full_like(bits(x), 1 << bit))
    assert torch.equal(bits(flip(flipped)), bits(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_named_bits_are_those_of_the_format(dtype):
    x = healthy(16, 200, dtype=dtype)
    sign = ActiveFault(Fault("bit_flip", 0, bits="sign"))(x)
    assert torch.equal(sign, -x)
    mantissa = ActiveFault(Fault("bit_flip", 0, bits="mantissa"))(x)
    assert torch.equal(torch.frexp(mantissa).exponent, torch.frexp(x).exponent)
    exponent = ActiveFault(Fault("bit_flip", 0, bits="exponent"))(x)
    finite = exponent.isfinite() & (exponent.abs() >= torch.finfo(dtype).smallest_normal)
    assert bool((torch.frexp(exponent).exponent != torch.frexp(x).exponent)[finite].all())


def test_a_unit_keeps_the_bit_that_is_flipped_in_it():
    x = healthy(64, 50, dtype=torch.float32)
    pattern = bits(ActiveFault(Fault("bit_flip", 0, bits="mantissa", seed=3))(x)) ^ bits(x)
    assert bool((pattern == pattern[:1]).all())
    assert len(set(pattern[0].tolist())) > 5


def test_a_bit_that_the_format_does_not_have_is_named():
    with pytest.raises(UsageError, match=r"bits '20' do not exist in torch.bfloat16: its bits are 0 to 15"):
        ActiveFault(Fault("bit_flip", 0, bits="20"))(healthy(2, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize("level", [0, 1])
def test_a_stuck_bit_has_its_level_everywhere(level):
    x = healthy(16, 32, dtype=torch.float32)
    stuck = bits(ActiveFault(Fault("stuck_at", 0, bits="5", value=level))(x))
    assert bool(((stuck >> 5) & 1 == level).all())
    assert torch.equal(stuck | (1 << 5), bits(x) | (1 << 5))


def test_a_stuck_value_scale_and_sign():
    x = healthy(20, 40)
    assert (through(x, "stuck_at", value=2.5) == 2.5).all()
    assert np.array_equal(through(x, "scale", factor=3), 3 * x.numpy())
    assert np.array_equal(through(x, "sign_flip"), -x.numpy())


@given(st.integers(0, 6))
def test_truncation_goes_towards_zero_by_less_than_the_bits_lost_and_away_the_other_way(top):
    x = healthy(20, 40, dtype=torch.bfloat16)
    step = 2.0 ** (torch.frexp(x.float()).exponent - 8 + top + 1)
    down, up = (
        ActiveFault(Fault("rounding", 0, bits=f"0-{top}", mode=mode))(x).float() for mode in ("truncate", "away")
    )
    size = x.float().abs()
    assert bool(((down.abs() <= size) & (size - down.abs() < step)).all())
    assert bool(((up.abs() >= size) & (up.abs() - size < step)).all())
    assert bool((down.sign() * x.float().sign() >= 0).all())
    assert torch.equal(down.bfloat16().float(), down)


def test_rounding_leaves_what_is_not_finite():
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1.5]], dtype=torch.bfloat16)
    for mode in ("truncate", "away"):
        rounded = ActiveFault(Fault("rounding", 0, bits="0-6", mode=mode))(x)
        assert bits(rounded)[0, :3].tolist() == bits(x)[0, :3].tolist()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_subnormal_numbers_are_flushed_and_the_smallest_normal_one_is_kept(dtype):
    normal = torch.finfo(dtype).smallest_normal
    x = torch.tensor([[normal, -normal, normal / 2, -normal / 2, 0.0, 1.0]], dtype=dtype)
    assert ActiveFault(Fault("flush_subnormals", 0))(x).tolist() == [[normal, -normal, 0, 0, 0, 1]]


@pytest.mark.parametrize(("every", "acting"), [(1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (4, [4])])
def test_a_fault_acts_on_each_nth_call(every, acting):
    fault, x = ActiveFault(Fault("sign_flip", 0, every=every)), healthy(4, 8)
    changed = [call for call in range(1, 7) if not torch.equal(fault(x), x)]
    assert changed == acting
    assert (fault.calls, fault.acted) == (6, len(acting))


def test_a_rate_is_the_probability_to_act():
    fault, x = ActiveFault(Fault("sign_flip", 0, rate=0.25, draws=11)), healthy(1, 2)
    for _ in range(2000):
        fault(x)
    assert fault.acted / fault.calls == pytest.approx(0.25, abs=0.03)
