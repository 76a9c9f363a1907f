"""The loss of keys and values is a mean that weights do not make larger or smaller."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from distill.losses.kv_loss import DISTANCES, kv_loss
from hal.errors import UsageError


def tensors(seed=0, tokens=6):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, tokens, 8, generator=generator) for _ in range(2)]


@pytest.mark.parametrize(
    ("distance", "function"), [("smooth_l1", functional.smooth_l1_loss), ("mse", functional.mse_loss)]
)
def test_without_weights_it_is_torchs(distance, function):
    student, teacher = tensors()
    assert kv_loss(student, teacher, distance) == pytest.approx(function(student, teacher).item())


@pytest.mark.parametrize("distance", DISTANCES)
@given(st.floats(1e-3, 1e3), st.integers(1, 64))
def test_equal_weights_of_any_size_and_any_number_of_tokens_are_no_weights(distance, size, tokens):
    student, teacher = tensors(tokens=tokens)
    weights = torch.full((2, tokens), size)
    assert kv_loss(student, teacher, distance, 2.0, weights).item() == pytest.approx(
        kv_loss(student, teacher, distance, 2.0).item(), rel=1e-4
    )


def test_alpha_scales_only_the_distance_that_has_it():
    student, teacher = tensors()
    assert kv_loss(student, teacher, "smooth_l1_alpha", 3.0).item() == pytest.approx(
        3 * kv_loss(student, teacher, "smooth_l1", 3.0).item()
    )


def test_tokens_of_weight_zero_do_not_count():
    student, teacher = tensors()
    weights = torch.ones(2, 6)
    weights[:, 3:] = 0
    cut = kv_loss(student[:, :3], teacher[:, :3])
    assert kv_loss(student, teacher, weights=weights).item() == pytest.approx(cut.item())


def test_other_shapes_are_refused():
    student, teacher = tensors()
    with pytest.raises(UsageError, match="do not match"):
        kv_loss(student, teacher[:, 1:])
