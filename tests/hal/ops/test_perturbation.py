"""Relative and additive noise: formula, bits, gradient, independence of cutting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hal
from hal import noise
from hal.ops.perturbation import additive_noise, relative_noise, relative_noise_

COUNT = 150_001  # more than two chunks on the host
X = noise.normal(COUNT, seed=1)
KEY = {"seed": 5, "stream": 6}
BOTH = [relative_noise, additive_noise]


def test_relative_noise_is_its_formula_to_the_bit():
    draw = noise.normal(COUNT, **KEY)
    assert torch.equal(relative_noise(X, 0.05, **KEY), draw * 0.05 * X.abs() + X)


def test_additive_noise_is_its_formula_to_the_bit():
    draw = noise.normal(COUNT, **KEY)
    assert torch.equal(additive_noise(X, 0.05, **KEY), draw * 0.05 + X)


@pytest.mark.parametrize("perturb", BOTH)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_round_once(perturb, dtype):
    narrow = X.to(dtype)
    assert torch.equal(perturb(narrow, 0.05, **KEY), perturb(narrow.float(), 0.05, **KEY).to(dtype))


@given(cut=st.integers(0, COUNT), start=st.integers(0, 2**40))
@pytest.mark.parametrize("perturb", BOTH)
def test_parts_with_their_own_start_are_those_of_the_whole(perturb, cut, start):
    begin, end = max(0, cut - 50), min(COUNT, cut + 50)
    index = torch.arange(start + begin, start + end)
    draw = noise.normal_at(index, **KEY)
    scale = X[begin:end].abs() if perturb is relative_noise else 1.0
    part = perturb(X[begin:end], 0.05, **KEY, start=start + begin)
    assert torch.equal(part, draw * 0.05 * scale + X[begin:end])


@pytest.mark.parametrize("perturb", BOTH)
def test_shape_and_strides_do_not_matter(perturb):
    square = X[:90_000].view(300, 300)
    assert torch.equal(perturb(square, 0.05, **KEY), perturb(square.reshape(-1), 0.05, **KEY).view(300, 300))
    assert torch.equal(perturb(square.T, 0.05, **KEY), perturb(square.T.contiguous(), 0.05, **KEY))


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_gradient_uses_the_noise_of_the_forward_pass(mode):
    x = X.clone().requires_grad_()
    y = relative_noise(x, 0.05, **KEY, mode=mode)
    y.backward(torch.full_like(y, 2.0))
    # y = x * (1 + sigma * sign(x) * e), so the factor is y / x.
    factor = (y.detach() / X).double()
    assert torch.allclose(x.grad.double(), 2 * factor, rtol=1e-5, atol=1e-5)


def test_gradient_at_zero_is_one():
    x = torch.zeros(4, requires_grad=True)
    relative_noise(x, 0.05, **KEY).sum().backward()
    assert x.grad.tolist() == [1.0] * 4


def test_gradient_of_additive_noise_passes():
    x = X[:10].clone().requires_grad_()
    additive_noise(x, 0.05, **KEY).backward(X[10:20])
    assert torch.equal(x.grad, X[10:20])


def test_zeros_stay_zero_under_relative_noise():
    assert torch.equal(relative_noise(torch.zeros(100), 0.5, **KEY), torch.zeros(100))


@pytest.mark.parametrize("perturb", BOTH)
def test_sigma_zero_is_the_identity(perturb):
    assert torch.equal(perturb(X, 0.0, **KEY), X)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("perturb", BOTH)
def test_size_of_the_noise_is_sigma(perturb, mode):
    ones = torch.ones(COUNT)
    spread = float((perturb(ones, 0.05, **KEY, mode=mode) - 1).std())
    assert spread == pytest.approx(0.05, rel=4 / math.sqrt(2 * COUNT))


@pytest.mark.parametrize("perturb", BOTH)
def test_fast_mode_repeats_itself(perturb):
    first = perturb(X, 0.05, **KEY, mode="fast")
    assert torch.equal(first, perturb(X, 0.05, **KEY, mode="fast"))
    assert not torch.equal(first, perturb(X, 0.05, seed=5, stream=7, mode="fast"))


@pytest.mark.parametrize("perturb", BOTH)
@pytest.mark.parametrize("sigma", [-0.1, math.inf, math.nan])
def test_impossible_sigma_is_refused(perturb, sigma):
    with pytest.raises(hal.UsageError, match=f"noise sigma is {sigma}: give a finite number that is not negative"):
        perturb(X, sigma, **KEY)


@pytest.mark.parametrize("perturb", BOTH)
def test_empty_tensors_pass(perturb):
    assert perturb(torch.empty(0, 3), 0.1, **KEY).shape == (0, 3)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_form_has_the_same_bits(mode, dtype):
    x = X.to(dtype)
    expected = relative_noise(x, 0.05, **KEY, mode=mode)
    assert relative_noise_(x, 0.05, **KEY, mode=mode) is x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("x", [X[:100].view(10, 10).T, X[:5].clone().requires_grad_()])
def test_in_place_form_refuses_what_it_would_spoil(x):
    with pytest.raises(hal.UsageError, match="in-place noise on a tensor that needs a gradient or has strides"):
        relative_noise_(x, 0.1, **KEY)
