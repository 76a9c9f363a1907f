"""Fake quantisation: code points, ties, blocks, non-finite elements, gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import hal
from hal import noise
from hal.ops.quantisation import (
    E2M1_MAX,
    E4M3_MAX,
    fake_quantize_int8,
    fake_quantize_mxfp4,
    fake_quantize_nvfp4,
    round_to_format,
)
from hal.ops.quantisation_quality import quantisation_quality
from hal.ops.quantisation_reference import E2M1_CODES, E4M3_CODES, int8, mxfp4, nearest, nvfp4

CODES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
QUANTISERS = [fake_quantize_mxfp4, fake_quantize_nvfp4, fake_quantize_int8]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

FLOAT32 = arrays.arrays(
    np.float32, arrays.array_shapes(max_dims=2, max_side=70), elements=st.floats(width=32, allow_nan=False)
)


def both_signs(values):
    return torch.cat((values, -values))


@pytest.mark.parametrize("exponent", range(-127, 126))
def test_every_mxfp4_code_times_every_reachable_e8m0_scale_is_exact(exponent):
    block = (both_signs(CODES).double() * 2.0**exponent).float()
    assert torch.equal(fake_quantize_mxfp4(block), block)


@pytest.mark.parametrize("code", E4M3_CODES[1:])
def test_every_nvfp4_code_times_every_e4m3_scale_is_exact(code):
    block = both_signs(CODES) * float(code)
    assert torch.equal(fake_quantize_nvfp4(block, tensor_scale=1.0), block)


def test_e2m1_codes_are_those_of_the_format():
    assert E2M1_CODES.tolist() == CODES.tolist()
    assert torch.equal(round_to_format(CODES, 1, 0, E2M1_MAX), CODES)


@pytest.mark.parametrize(
    ("tie", "even"),
    [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0), (7.0, 6.0)],
)
def test_e2m1_ties_go_to_the_even_code(tie, even):
    below, above = np.nextafter(np.float32(tie), np.float32([-1, 9]))
    rounded = round_to_format(torch.tensor([tie, below, above]), 1, 0, E2M1_MAX).tolist()
    neighbours = sorted(CODES.tolist(), key=lambda code: abs(code - tie))[:2]
    assert rounded[0] == even
    assert rounded[1] == (min(neighbours) if tie < 6 else 6.0)
    assert rounded[2] == (max(neighbours) if tie < 6 else 6.0)


def test_e4m3_codes_are_those_of_the_format():
    patterns = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert patterns.tolist() == E4M3_CODES.tolist()


def test_e4m3_rounding_is_torchs():
    middles = torch.tensor((E4M3_CODES[:-1] + E4M3_CODES[1:]) / 2, dtype=torch.float32)
    spread = torch.exp2(noise.uniform(50_000, seed=1) * 20 - 11)
    values = torch.cat((middles, spread)).clamp(max=E4M3_MAX)
    assert torch.equal(round_to_format(values, 3, -6, E4M3_MAX), values.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("codes", [E2M1_CODES, E4M3_CODES])
def test_nearest_takes_the_even_one_of_two(codes):
    middles = (codes[:-1] + codes[1:]) / 2
    even = [low if place % 2 == 0 else high for place, (low, high) in enumerate(itertools.pairwise(codes))]
    assert nearest(middles, codes).tolist() == even
    assert nearest(codes, codes).tolist() == codes.tolist()
    assert nearest([codes[-1] * 3], codes).tolist() == [codes[-1]]


@given(values=FLOAT32)
@pytest.mark.parametrize(
    ("quantise", "reference"),
    [(fake_quantize_mxfp4, mxfp4), (fake_quantize_nvfp4, nvfp4), (fake_quantize_int8, int8)],
)
def test_any_finite_tensor_gives_the_bits_of_the_reference(quantise, reference, values):
    x = torch.from_numpy(values.copy())
    assert torch.equal(quantise(x).double(), reference(x))


@given(values=FLOAT32)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mxfp4_is_idempotent(values, dtype):
    once = fake_quantize_mxfp4(torch.from_numpy(values.copy()).to(dtype).nan_to_num(0, 0, 0))
    assert torch.equal(fake_quantize_mxfp4(once), once)


@given(values=FLOAT32)
def test_nvfp4_of_a_fixed_tensor_scale_is_idempotent_where_block_scales_are_normal(values):
    x = torch.from_numpy(values.copy()).clamp(-1e30, 1e30)
    scale = 2.0**100
    alive = torch.where(x.abs() > 0, x, 0.0).clamp(min=-448 * 6 * scale, max=448 * 6 * scale)
    padded = torch.nn.functional.pad(alive, (0, -alive.shape[-1] % 16)).unflatten(-1, (-1, 16))
    normal = padded.abs().amax(-1, keepdim=True) / 6 / scale >= 2.0**-6
    x = torch.where(normal, padded, 0.0).flatten(-2)
    once = fake_quantize_nvfp4(x, scale)
    assert torch.equal(fake_quantize_nvfp4(once, scale), once)


@given(values=FLOAT32)
def test_int8_keeps_its_integers_when_applied_again(values):
    x = torch.from_numpy(values.copy()).clamp(-1e30, 1e30)
    x = torch.where(x.abs() > 1e-30, x, 0.0)
    once = fake_quantize_int8(x)
    assert torch.allclose(fake_quantize_int8(once), once, rtol=1e-6, atol=0.0)


@given(values=FLOAT32)
@pytest.mark.parametrize("quantise", QUANTISERS)
def test_sign_does_not_matter(quantise, values):
    x = torch.from_numpy(values.copy())
    assert torch.equal(quantise(-x), -quantise(x))


@pytest.mark.parametrize(("quantise", "size"), [(fake_quantize_mxfp4, 32), (fake_quantize_nvfp4, 16)])
def test_blocks_have_scales_of_their_own_and_a_short_last_one_too(quantise, size):
    scales = [1.0, 1e-3, 1e3]
    parts = [noise.normal((4, width), seed=width) * scale for width, scale in zip((size, size, 5), scales, strict=True)]
    arguments = () if quantise is fake_quantize_mxfp4 else (1e-2,)
    whole = quantise(torch.cat(parts, -1), *arguments)
    assert torch.equal(whole, torch.cat([quantise(part, *arguments) for part in parts], -1))


def test_mxfp4_largest_value_of_a_block_sets_the_scale_and_may_saturate():
    block = torch.zeros(32)
    block[:4] = torch.tensor([7.9, 5.0, 0.3, -0.2])
    assert fake_quantize_mxfp4(block)[:4].tolist() == [6.0, 4.0, 0.5, 0.0]


def test_nvfp4_default_tensor_scale_maps_the_largest_block_to_the_largest_scale():
    x = noise.normal((3, 64), seed=2)
    scale = float(x.abs().max() / (6 * 448))
    assert torch.equal(fake_quantize_nvfp4(x), fake_quantize_nvfp4(x, scale))
    assert float(fake_quantize_nvfp4(x).abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-6)


def test_nvfp4_block_too_small_for_its_scale_becomes_zero():
    x = torch.full((32,), 1e-9)
    x[:16] = 1.0
    assert fake_quantize_nvfp4(x).tolist() == [pytest.approx(1.0)] * 16 + [0.0] * 16


def test_int8_scope():
    x = torch.tensor([[1.0, 0.001], [100.0, 50.0]])
    assert fake_quantize_int8(x, "tensor")[0].tolist() == [pytest.approx(100 / 127), 0.0]
    assert fake_quantize_int8(x)[0].tolist() == [1.0, 0.0]
    assert fake_quantize_int8(x)[1].tolist() == [100.0, pytest.approx(100 * 64 / 127)]


@pytest.mark.parametrize("quantise", QUANTISERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nonfinite_elements_pass_and_set_no_scale(quantise, dtype):
    x = noise.normal((2, 64), seed=3, dtype=dtype)
    spoilt = x.clone()
    spoilt[0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    cleared = x.clone()
    cleared[0, :3] = 0.0
    result, expected = quantise(spoilt), quantise(cleared)
    assert torch.equal(result[0, :2], spoilt[0, :2])
    assert result[0, 2].isnan()
    assert torch.equal(result[0, 3:], expected[0, 3:])
    assert torch.equal(result[1], expected[1])


@pytest.mark.parametrize("quantise", QUANTISERS)
@pytest.mark.parametrize("shape", [(4, 32), (0,), (3, 0), (1,)])
def test_zeros_and_empty_tensors_stay(quantise, shape):
    x = torch.zeros(shape)
    assert torch.equal(quantise(x), x)


@pytest.mark.parametrize("quantise", QUANTISERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_that_of_the_identity(quantise, dtype):
    x = noise.normal((3, 40), seed=4, dtype=dtype).requires_grad_()
    gradient = noise.normal((3, 40), seed=5, dtype=dtype)
    y = quantise(x)
    y.backward(gradient)
    assert y.dtype == dtype
    assert torch.equal(x.grad, gradient)


@pytest.mark.parametrize("quantise", QUANTISERS)
def test_input_is_not_changed_and_strides_do_not_matter(quantise):
    x = noise.normal((40, 3), seed=4)
    before = x.clone()
    assert torch.equal(quantise(x.T), quantise(x.T.contiguous()))
    assert torch.equal(x, before)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_impossible_tensor_scale_is_refused(scale):
    with pytest.raises(hal.UsageError, match=f"NVFP4 tensor scale is {scale}: give a positive finite number"):
        fake_quantize_nvfp4(torch.ones(4), scale)


def test_unknown_scope_and_bare_numbers_are_refused():
    with pytest.raises(hal.UsageError, match="INT8 scope is 'row': choose 'token' or 'tensor'"):
        fake_quantize_int8(torch.ones(4), "row")
    with pytest.raises(hal.UsageError, match="give a tensor with at least one dimension"):
        fake_quantize_mxfp4(torch.tensor(1.0))


def test_quality_of_gaussian_values_is_that_of_each_format():
    x = noise.normal((64, 1024), seed=6)
    quality = {quantise.__name__: quantisation_quality(x, quantise(x)) for quantise in QUANTISERS}
    assert quality["fake_quantize_mxfp4"].sqnr_db == pytest.approx(18.6, abs=0.5)
    assert quality["fake_quantize_nvfp4"].sqnr_db == pytest.approx(20.5, abs=0.6)
    # Uniform rounding error of a step of max / 127, the maximum of 1024 normal values being near 3.4.
    assert quality["fake_quantize_int8"].sqnr_db == pytest.approx(-10 * math.log10((3.4 / 127) ** 2 / 12), abs=0.5)
    dead = [quality[name].dead_zone_ratio for name in quality]
    assert dead == sorted(dead, reverse=True)


def test_quality_figures():
    x = torch.tensor([3.0, -4.0, 0.0, math.inf])
    quality = quantisation_quality(x, torch.tensor([3.0, 0.0, 0.0, 1.0]))
    assert quality.sqnr_db == pytest.approx(10 * math.log10(25 / 16))
    assert quality.dead_zone_ratio == 0.5
    assert quality.relative_error == pytest.approx(0.8)
    assert quantisation_quality(x, x).sqnr_db == math.inf
    assert quantisation_quality(x * 1e38, x * 1e38).relative_error == 0.0


def test_quality_of_nothing_is_refused():
    with pytest.raises(hal.UsageError, match=r"shape \(3,\) against \(4,\)"):
        quantisation_quality(torch.ones(4), torch.ones(3))
    with pytest.raises(hal.UsageError, match="holds no finite value but zero"):
        quantisation_quality(torch.zeros(4), torch.zeros(4))
