"""Importances have mean 1, come from what a token receives, and carry no gradient."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.losses.attention_weights import WarmUp, token_importance
from hal.errors import UsageError

ATTENTION = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.75, 0.25]]])  # [1, 3, 3], causal


def test_a_token_counts_by_the_attention_it_receives():
    assert token_importance(ATTENTION).tolist() == [[1.5, 1.25, 0.25]]


def test_heads_are_averaged():
    assert token_importance(torch.stack([ATTENTION, ATTENTION], dim=1)).tolist() == [[1.5, 1.25, 0.25]]


def test_importances_are_taken_as_they_are_but_for_their_size():
    assert token_importance(torch.tensor([[2.0, 6.0]])).tolist() == [[0.5, 1.5]]


@given(st.lists(st.lists(st.floats(0, 100), min_size=5, max_size=5), min_size=5, max_size=5), st.integers(1, 5))
def test_their_mean_is_one_over_the_tokens_that_count(weights, number):
    counted = (torch.arange(5) < number).long()[None]
    importance = token_importance(torch.tensor([weights]), counted)
    assert importance.sum().item() == pytest.approx(number, rel=1e-4)
    assert not importance[0, number:].any()


def test_the_queries_of_padding_do_not_count():
    counted = torch.tensor([[1, 1, 0]])
    assert token_importance(ATTENTION, counted).tolist() == [[1.5, 0.5, 0.0]]


def test_a_row_without_attention_has_all_tokens_count_alike():
    assert token_importance(torch.zeros(1, 4)).tolist() == [[1, 1, 1, 1]]


def test_no_gradient_reaches_the_attention():
    assert not token_importance(ATTENTION.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        (torch.ones(3), r"\[3\] are none of"),
        (torch.ones(1, 2, 3, 4, 5), "are none of"),
        (torch.tensor([[1.0, -1.0]]), "finite and not negative"),
        (torch.tensor([[1.0, float("nan")]]), "finite and not negative"),
    ],
)
def test_what_is_no_attention_is_refused(attention, words):
    with pytest.raises(UsageError, match=words):
        token_importance(attention)


def test_a_warm_up_goes_from_all_alike_to_importance_with_mean_one_throughout(caplog):
    importance, counted = token_importance(ATTENTION), torch.ones(1, 3)
    warm_up = WarmUp(100, "student")
    with caplog.at_level(logging.INFO):
        weights = [warm_up.weights(importance, counted, step) for step in (0, 50, 100, 500)]
    assert weights[0].tolist() == counted.tolist()
    assert weights[1].tolist() == [[1.25, 1.125, 0.625]]
    assert weights[2].tolist() == weights[3].tolist() == importance.tolist()
    assert all(entry.mean() == 1 for entry in weights)
    assert [record.message for record in caplog.records] == [
        "attention of the student: from step 0 blended in until step 100",
        "attention of the student: from step 100 in full",
    ]


def test_without_steps_there_is_no_warm_up():
    importance = token_importance(ATTENTION)
    assert WarmUp(0, "teacher").weights(importance, torch.ones(1, 3), 0).tolist() == importance.tolist()
    with pytest.raises(UsageError, match="-1 warm-up steps"):
        WarmUp(-1, "teacher")
