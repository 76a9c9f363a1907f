"""Activations and limits at the places where a general comparison says little."""

from __future__ import annotations

import math

import pytest
import torch

import hal
from hal import noise
from hal.ops.activations import clamp, gelu, gelu_tanh, saturate, silu, softmax, swiglu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_the_two_forms_of_gelu_differ_as_they_should():
    x = torch.linspace(-4, 4, 1001)
    difference = (gelu(x) - gelu_tanh(x)).abs().max()
    # The approximation's greatest error, near |x| = 2.
    assert 4e-4 < float(difference) < 5e-4


def test_swiglu_is_silu_times_up():
    gate, up = noise.normal(100, seed=1), noise.normal(100, seed=2)
    assert torch.allclose(swiglu(gate, up), silu(gate) * up)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_sums_to_one_along_its_dimension(dim):
    x = noise.normal((7, 9, 5), seed=1) * 10
    assert torch.allclose(softmax(x, dim).sum(dim), torch.ones(x.sum(dim).shape))


def test_softmax_of_extremes():
    assert softmax(torch.tensor([3e38, -3e38])).tolist() == [1.0, 0.0]
    assert softmax(torch.tensor([-math.inf, 0.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_clamp_limits_and_keeps_nan(dtype):
    x = torch.tensor([-math.inf, -2.0, 0.5, 2.0, math.inf, math.nan], dtype=dtype)
    limited = clamp(x, -1.0, 1.0)
    assert limited.dtype == dtype
    assert limited[:5].tolist() == [-1.0, -1.0, 0.5, 1.0, 1.0]
    assert limited[5].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturation_limits_to_a_share_of_the_largest_finite_value(dtype):
    x = torch.tensor([-8.0, 4.0, 7.0, -1.0, math.inf, math.nan], dtype=dtype)
    limited = saturate(x, 0.5)
    assert limited[:5].tolist() == [-4.0, 4.0, 4.0, -1.0, 4.0]
    assert limited[5].isnan()
    assert limited.dtype == dtype


def test_saturation_passes_the_gradient_of_what_it_leaves():
    x = torch.tensor([-8.0, 4.0, 7.0, -1.0], requires_grad=True)
    saturate(x, 0.5).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("magnitude", [0.0, 1.0])
def test_saturation_at_its_ends(magnitude):
    x = noise.normal(20, seed=1)
    assert torch.equal(saturate(x, magnitude), x * (1 - magnitude))
    assert saturate(torch.empty(0), magnitude).shape == (0,)


@pytest.mark.parametrize("magnitude", [-0.1, 1.5, math.nan])
def test_saturation_outside_its_range_is_refused(magnitude):
    with pytest.raises(hal.UsageError, match=f"saturation magnitude is {magnitude}: give a number from 0 to 1"):
        saturate(torch.ones(2), magnitude)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (math.nan, 1.0)])
def test_clamp_with_limits_in_the_wrong_order_is_refused(low, high):
    with pytest.raises(hal.UsageError, match="the lower limit must not exceed the upper"):
        clamp(torch.ones(2), low, high)
