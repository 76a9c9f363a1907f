import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srdd.excitation import AMPLIFICATION_BITS, HIGHEST, OFFSET, PERTURBATION, excitations

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALL = ["repeat_0", "repeat_1", "offset_up", "offset_down", "amplified", "perturbed"]


def stream(dtype=torch.float32, scale=1.0, seed=0, shape=(4, 16, 64)):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def by_name(x, layer=3, seed=0, repeats=2, output=None):
    output = x if output is None else output
    return {entry.name: entry for entry in excitations(x, output, layer, seed, repeats)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_usual_stream_gives_every_excitation_in_its_own_form(dtype):
    x = stream(dtype)
    before = x.clone()
    made = by_name(x)
    assert list(made) == ALL
    assert all((entry.stream.shape, entry.stream.dtype) == (x.shape, dtype) for entry in made.values())
    assert torch.equal(x, before)


def test_repeats_are_the_stream_itself():
    x = stream()
    made = by_name(x, repeats=5)
    assert list(made) == [f"repeat_{trial}" for trial in range(5)] + ALL[2:]
    assert all(torch.equal(made[f"repeat_{trial}"].stream, x) for trial in range(5))


@given(st.integers(-20, 20), st.integers(0, 10))
def test_the_perturbation_is_a_tenth_of_the_streams_size(exponent, seed):
    x = stream(scale=2.0**exponent)
    entry = by_name(x, seed=seed)["perturbed"]
    change = entry.stream.double() - x.double()
    assert entry.size == pytest.approx(PERTURBATION * float(x.std(correction=0)), rel=1e-5)
    assert float(change.std()) == pytest.approx(entry.size, rel=0.05)
    assert abs(float(change.mean())) < 0.1 * entry.size


@given(st.integers(-20, 20))
def test_the_offsets_are_fifty_standard_deviations_either_way(exponent):
    x = stream(scale=2.0**exponent)
    made = by_name(x)
    size = OFFSET * float(x.std(correction=0))
    assert made["offset_up"].size == pytest.approx(size)
    assert made["offset_down"].size == pytest.approx(-size)
    torch.testing.assert_close(made["offset_down"].stream, x - size)
    spikes = made["offset_up"].stream > 2 * float((x + size).abs().max())
    torch.testing.assert_close(made["offset_up"].stream[~spikes], (x + size)[~spikes])


@given(st.integers(1, 70), st.integers(2, 70))
def test_every_unit_is_by_far_the_largest_in_some_row_and_half_of_the_rows_have_no_spike(rows, units):
    x = stream(shape=(1, rows, units))
    up = by_name(x)["offset_up"].stream[0]
    spikes = up > 2 * float((x + by_name(x)["offset_up"].size).abs().max())
    assert bool(spikes.any(dim=0).all())
    assert not bool(spikes[1::2].any())


@given(st.sampled_from(DTYPES), st.floats(1e-4, 1e5), st.integers(0, 3))
def test_an_excitation_stays_in_the_dtypes_range_and_amplification_is_exact(dtype, scale, seed):
    x = stream(dtype, min(scale, 1e3) if dtype == torch.float16 else scale, seed)
    for entry in by_name(x).values():
        assert bool(torch.isfinite(entry.stream).all())
        if entry.name == "amplified":
            assert 2 <= entry.size <= 2**AMPLIFICATION_BITS
            assert torch.equal(entry.stream.double(), x.double() * entry.size)
            assert float(entry.stream.abs().max()) <= torch.finfo(dtype).max / 4


def test_a_stream_near_the_end_of_the_range_is_neither_offset_nor_amplified():
    x = stream(torch.float16)
    x[0, 0, 0] = 60000
    assert list(by_name(x)) == [*ALL[:2], "perturbed"]


@pytest.mark.parametrize("value", [0.0, 1.0, -7.5])
def test_a_constant_stream_is_only_repeated(value):
    assert list(by_name(torch.full((2, 3, 8), value))) == ALL[:2]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_stream_that_is_not_finite_is_only_repeated(value):
    x = stream()
    x[0, 0, 0] = value
    assert list(by_name(x)) == ALL[:2]


def test_a_single_token_is_excited_too():
    assert list(by_name(stream(shape=(1, 1, 64)))) == ALL


def test_the_same_seed_and_layer_give_the_same_inputs_whatever_the_programs_seed():
    x = stream()
    torch.manual_seed(0)
    first = by_name(x)["perturbed"].stream
    drawn = torch.rand(4)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(4))
    assert torch.equal(first, by_name(x)["perturbed"].stream)
    assert not torch.equal(first, by_name(x, layer=4)["perturbed"].stream)
    assert not torch.equal(first, by_name(x, seed=1)["perturbed"].stream)


def test_excitations_are_made_one_at_a_time():
    x, broken = stream(), torch.full((1, 1, 4), torch.nan)
    assert iter(excitations(x, x, 0, 0, 2)) is not None
    assert next(excitations(broken, broken, 0, 0, 2)).name == "repeat_0"


@given(st.floats(1.0, 1000.0), st.floats(1 / 16, 0.9), st.integers(0, 5))
def test_a_clamp_at_a_share_of_the_maximum_reaches_every_unit_whatever_the_layer_adds(size, magnitude, seed):
    x = stream(seed=seed, shape=(4, 16, 16))
    update = size * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed + 1)) - 1)
    result = by_name(x, output=x + update)["offset_up"].stream + update.flatten().roll(7).reshape(x.shape)
    clamped = result.abs() > (1 - magnitude) * result.abs().max()
    assert bool(clamped.flatten(0, 1).any(dim=0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("returned", [float("inf"), float("nan"), 1e30])
def test_whatever_a_layer_returns_its_inputs_stay_finite_and_of_a_size(dtype, returned):
    x = stream(dtype)
    output = x.float().clone()
    output[0, 0, 0] = returned
    up = by_name(x, output=output)["offset_up"].stream
    assert bool(up.isfinite().all())
    assert float(up.abs().max()) <= 1.01 * HIGHEST * float((x.float() + by_name(x)["offset_up"].size).abs().max())
