"""A last bit that no value has, where half of the exact ones have it, is no rounding that a sound device makes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import srdd
from hal.raw_bits import as_integers
from srdd.faults import parse_fault, simulate
from srdd.replay.low_bits import missing_bit

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def exact_values(rows, units, seed):
    return torch.randn(rows, units, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def off_by(x, places):
    """`x` so many of its last places away from zero."""
    return (as_integers(x) + places.to(as_integers(x).dtype)).view(x.dtype)


def without_bit(x, bit):
    return (as_integers(x) & ~(1 << bit)).view(x.dtype)


@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 300),
    units=st.integers(1, 48),
    seed=st.integers(0, 2**32),
    far=st.integers(0, 3),
    shift=st.integers(-2, 2),
)
@settings(deadline=None)
def test_errors_of_some_last_places_are_no_surprise(dtype, rows, units, seed, far, shift):
    exact = exact_values(rows, units, seed)
    places = torch.randint(-far, far + 1, exact.shape, generator=torch.Generator().manual_seed(seed)) + shift
    assert missing_bit(off_by(exact.to(dtype), places), lambda: exact) < 1


@given(
    dtype=st.sampled_from(DTYPES),
    bit=st.integers(0, 2),
    unit=st.integers(0, 5),
    far=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_a_bit_that_one_unit_or_one_row_lacks_is_a_surprise_whatever_the_errors_were(dtype, bit, unit, far, seed):
    exact = exact_values(64, 64, seed)
    places = torch.randint(-far, far + 1, exact.shape, generator=torch.Generator().manual_seed(seed))
    actual = off_by(exact.to(dtype), places)
    column, row = actual.clone(), actual.clone()
    column[:, unit] = without_bit(actual[:, unit], bit)
    row[unit] = without_bit(actual[unit], bit)
    assert missing_bit(column, lambda: exact) > 1
    assert missing_bit(row, lambda: exact) > 1


def test_a_bit_that_is_always_set_is_a_surprise_too():
    exact = exact_values(64, 8, 0)
    actual = exact.float()
    assert missing_bit((as_integers(actual) | 1).view(torch.float32), lambda: exact) > 1


def test_fewer_values_than_could_surprise_do_not():
    exact = exact_values(39, 39, 0)
    assert missing_bit(without_bit(exact.float(), 0), lambda: exact) == 0


def test_equal_values_count_once():
    exact = exact_values(1, 1, 0).expand(64, 64)
    assert missing_bit(without_bit(off_by(exact.float(), torch.tensor(1)), 0), lambda: exact) < 1


def test_values_that_have_no_such_bit_by_themselves_do_not_lack_it():
    widened = exact_values(64, 64, 0).bfloat16().float()
    assert missing_bit(widened, widened.double) == 0


def test_subnormal_numbers_that_are_flushed_and_values_that_saturate_are_left_out():
    exact = exact_values(64, 64, 0) * 2.0**-20
    flushed = exact.to(torch.float16)
    flushed[flushed.abs() < torch.finfo(torch.float16).smallest_normal] = 0
    assert missing_bit(flushed, lambda: exact) == 0
    large = exact_values(64, 64, 0) * 2.0**30
    assert missing_bit(large.to(torch.float16).clamp(-65504, 65504), lambda: large) == 0


PLACES = (
    ("rounding@1:site={}", "mlp.down_proj", ""),
    ("rounding@1:units=1,site={}", "self_attn.q_proj", ""),
    ("rounding@1:sparsity=0.1,site={}", "input_layernorm", ""),
    ("rounding@1:units=1,mode=away,site={}", "mlp.act_fn", ""),
    ("rounding@1:units=1,operator=attention,site={}", "self_attn", "attention"),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("fault", "site", "operator"), PLACES)
def test_truncation_is_named_where_accumulation_or_fusing_hide_it(make_model, fault, site, operator, dtype):
    model = make_model("llama").to(dtype)
    with simulate(model, [parse_fault(fault.format(site))]):
        [finding] = srdd.scan(model).findings
    place = (finding.layer, finding.site, finding.operator, finding.kind)
    assert place == (1, f"model.layers.1.{site}", operator, "rounding")


@pytest.mark.parametrize("fault", ["rounding@{}", "rounding@{}:units=1"])
@pytest.mark.parametrize("site", ["model.norm", "lm_head", "model.rotary_emb"])
def test_so_is_truncation_outside_the_layers(make_model, site, fault):
    model = make_model("llama")
    with simulate(model, [parse_fault(fault.format(site))]):
        [finding] = srdd.scan(model).findings
    assert (finding.site, finding.kind) == (site, "rounding")
