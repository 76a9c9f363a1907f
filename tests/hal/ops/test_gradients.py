"""Gradients of the defaults against those of the float64 references, and of the references against differences."""

from __future__ import annotations

import pytest
import torch

from hal import noise
from hal.ops import CATALOGUE, SampleSpec

DIFFERENTIABLE = sorted(name for name, op in CATALOGUE.items() if op.differentiable)
# Straight-through and masked gradients are not those that differences show.
SMOOTH = sorted(
    set(DIFFERENTIABLE)
    - {"fake_quantize_mxfp4", "fake_quantize_nvfp4", "fake_quantize_int8", "deadzone", "clamp", "saturate", "embedding"}
)
# A few units in the last place, relative to the largest gradient: on the host torch sums layer_norm's weight gradient
# over the rows in the narrow dtype.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def leaves(arguments):
    return tuple(
        value.clone().requires_grad_() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in arguments
    )


def gradients(function, arguments, incoming=None):
    taken = leaves(arguments)
    result = function(*taken)
    if incoming is None:
        incoming = noise.normal(result.shape, seed=99)
    result.backward(incoming.to(result.dtype))
    return [value.grad for value in taken if isinstance(value, torch.Tensor) and value.requires_grad]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("size", ["tiny", "odd", "large"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_of_the_default_is_that_of_the_reference(name, size, dtype):
    op = CATALOGUE[name]
    for values in ("normal", "one_sided", "near_zero"):
        arguments = op.sample(SampleSpec(dtype, size, values, seed=3))
        for got, expected in zip(gradients(op.default, arguments), gradients(op.reference, arguments), strict=True):
            assert got.dtype == dtype
            error = (got.double() - expected.double()).abs().max()
            largest = expected.double().abs().max()
            assert float(error) <= TOLERANCE[dtype] * float(largest), f"{values}: {error:.2e} of {largest:.2e}"


@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_of_the_reference_is_that_of_differences(name):
    op = CATALOGUE[name]
    arguments = op.sample(SampleSpec(torch.float32, "tiny", "normal", seed=3))
    wide = tuple(
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in arguments
    )
    assert torch.autograd.gradcheck(op.reference, leaves(wide))


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name != "embedding"])
def test_arguments_are_not_changed(name):
    op = CATALOGUE[name]
    arguments = op.sample(SampleSpec(torch.float32, "odd", "normal"))
    before = [value.clone() if isinstance(value, torch.Tensor) else value for value in arguments]
    op.default(*arguments)
    for now, then in zip(arguments, before, strict=True):
        assert torch.equal(now, then) if isinstance(now, torch.Tensor) else now == then
