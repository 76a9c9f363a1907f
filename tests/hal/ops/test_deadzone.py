"""The dead zone's mask is exact, and its gradient follows the mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import hal
from hal import noise
from hal.ops.deadzone import deadzone, survivors

THRESHOLD = st.floats(0.0, 1.0)
FLOAT32 = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=1, max_dims=3, max_side=9), elements=st.floats(width=32)
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def by_definition(values, threshold):
    finite = [abs(value) for value in values if math.isfinite(value)]
    limit = np.float32(max(finite, default=0.0)) * np.float32(threshold)
    return [not abs(value) < limit for value in values]


@given(values=FLOAT32, threshold=THRESHOLD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_is_exact(values, threshold, dtype):
    x = torch.from_numpy(values.copy()).to(dtype)
    expected = by_definition(x.flatten().tolist(), threshold)
    assert survivors(x, threshold).flatten().tolist() == expected
    kept = deadzone(x, threshold).flatten()
    assert torch.equal(kept.nan_to_num(7.0), torch.where(torch.tensor(expected), x.flatten(), 0.0).nan_to_num(7.0))


@given(values=FLOAT32, threshold=THRESHOLD)
def test_mask_of_scope_token_is_that_of_each_row_alone(values, threshold):
    x = torch.from_numpy(values.copy())
    rows = x.reshape(-1, x.shape[-1])
    expected = torch.stack([survivors(row, threshold) for row in rows])
    assert torch.equal(survivors(x, threshold, "token").reshape(rows.shape), expected)


@given(values=FLOAT32, threshold=THRESHOLD)
def test_gradient_is_zero_exactly_where_the_output_was_zeroed(values, threshold):
    x = torch.from_numpy(values.copy()).requires_grad_()
    y = deadzone(x, threshold)
    y.backward(torch.full_like(y, 3.0))
    assert torch.equal(x.grad, survivors(x, threshold) * 3.0)


@given(values=FLOAT32, threshold=THRESHOLD)
def test_applying_it_twice_changes_nothing(values, threshold):
    once = deadzone(torch.from_numpy(values.copy()), threshold)
    assert torch.equal(deadzone(once, threshold).nan_to_num(7.0), once.nan_to_num(7.0))


def test_threshold_of_scope_tensor_depends_on_the_batch_and_that_of_token_does_not():
    quiet, loud = torch.tensor([[1.0, 0.5]]), torch.tensor([[1000.0, 1.0]])
    batch = torch.cat((quiet, loud))
    assert deadzone(batch, 0.01)[0].tolist() == [0.0, 0.0]
    assert torch.equal(deadzone(batch, 0.01, "token")[0], quiet[0])


@pytest.mark.parametrize("scope", ["tensor", "token"])
@pytest.mark.parametrize("threshold", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("value", [0.0, 1e-42, 5.0, -5.0])
def test_equal_elements_all_survive(value, threshold, scope):
    x = torch.full((2, 3), value)
    assert torch.equal(deadzone(x, threshold, scope), x)


def test_element_equal_to_the_limit_survives():
    limit = float(np.float32(0.1) * np.float32(3.0))
    x = torch.tensor([3.0, limit, -limit, np.nextafter(np.float32(limit), np.float32(0))])
    assert survivors(x, 0.1).tolist() == [True, True, True, False]


def test_threshold_zero_is_the_identity():
    x = noise.normal(100, seed=1)
    assert torch.equal(deadzone(x, 0.0), x)


def test_threshold_one_leaves_the_maximum():
    assert deadzone(torch.tensor([1.0, -4.0, 4.0, 3.9]), 1.0).tolist() == [0.0, -4.0, 4.0, 0.0]


def test_nonfinite_elements_survive_and_set_no_maximum():
    x = torch.tensor([math.inf, math.nan, -math.inf, 1.0, 0.001])
    assert survivors(x, 0.01).tolist() == [True, True, True, True, False]
    assert survivors(torch.tensor([math.nan, 1.0]), 0.5).tolist() == [True, True]


def test_negative_values_become_positive_zero():
    y = deadzone(torch.tensor([10.0, -0.01]), 0.01)
    assert math.copysign(1.0, y[1].item()) == 1.0


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
@pytest.mark.parametrize("scope", ["tensor", "token"])
def test_empty_tensors_pass(shape, scope):
    assert deadzone(torch.empty(shape), 0.5, scope).shape == shape


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(hal.UsageError, match=f"dead-zone threshold is {threshold}: give a fraction of the maximum"):
        deadzone(torch.ones(3), threshold)


def test_unknown_scope_is_refused():
    with pytest.raises(hal.UsageError, match="dead-zone scope is 'row': choose 'tensor' or 'token'"):
        deadzone(torch.ones(3), 0.1, "row")
