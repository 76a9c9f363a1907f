"""CKA says 1 of a representation and itself, 0 of unrelated ones, whatever the widths and the number of tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.losses.cka import MOST, cka_loss, linear_cka, unbiased_hsic
from hal.errors import UsageError


def tokens(seed, number, width):
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# An earlier form with unequal estimators gave 0.37, 0.89, 0.002 and 0.25 here.
@pytest.mark.parametrize(("number", "width"), [(40, 64), (512, 64), (40, 1536), (512, 1536)])
def test_a_representation_agrees_with_itself(number, width):
    made = tokens(0, number, width)
    assert linear_cka(made, made).item() == pytest.approx(1, abs=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-10, 10))
def test_neither_rotation_nor_size_nor_offset_matter(seed, size, offset):
    made = tokens(seed, 30, 8)
    turned, _ = torch.linalg.qr(tokens(seed + 1, 8, 8))
    assert linear_cka(made, size * made @ turned + offset).item() == pytest.approx(1, abs=1e-4)


def test_unrelated_representations_agree_by_nothing_in_the_mean():
    found = [linear_cka(tokens(seed, 24, 200), tokens(seed + 1000, 24, 200)).item() for seed in range(300)]
    mean = sum(found) / len(found)
    deviation = torch.tensor(found).std().item() / len(found) ** 0.5
    assert abs(mean) < 4 * deviation
    # The biased estimator is near 1 here: 24 tokens in 200 dimensions are all equally far from each other.
    assert max(found) < 0.5


def test_the_estimator_is_that_of_the_paper_term_by_term():
    n = 5
    first, second = (entry @ entry.T for entry in (tokens(1, n, 3), tokens(2, n, 4)))
    k, other = (matrix - torch.diag(matrix.diagonal()) for matrix in (first, second))
    one = torch.ones(n, dtype=torch.float64)
    wanted = (
        torch.trace(k @ other)
        + (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ other @ one)
    ) / (n * (n - 3))
    assert unbiased_hsic(first, second).item() == pytest.approx(wanted.item())


def test_the_loss_looks_at_counted_tokens_alone():
    student = tokens(1, 20, 8).reshape(2, 10, 8).requires_grad_()
    teacher = tokens(2, 20, 16).reshape(2, 10, 16)
    counted = torch.ones(2, 10)
    counted[:, 7:] = 0
    loss = cka_loss([student], [teacher], counted)
    same = 1 - linear_cka(student[:, :7].flatten(0, 1), teacher[:, :7].flatten(0, 1))
    assert loss.item() == pytest.approx(same.item())
    loss.backward()
    assert student.grad[:, :7].any()
    assert not student.grad[:, 7:].any()


def test_of_very_many_tokens_some_are_taken():
    student, teacher = (tokens(seed, 3 * MOST, 4).reshape(3, MOST, 4).float() for seed in (1, 2))
    mixed = student + teacher
    whole = 1 - linear_cka(student.flatten(0, 1), mixed.flatten(0, 1))
    assert cka_loss([student], [mixed], torch.ones(3, MOST)).item() == pytest.approx(whole.item(), abs=0.05)
    assert 0.2 < whole < 0.8


def test_tokens_that_are_all_alike_agree_with_nothing_and_give_finite_gradients():
    made = torch.ones(10, 4, requires_grad=True)
    found = linear_cka(made, tokens(1, 10, 4))
    assert found.item() == pytest.approx(0, abs=1e-6)
    found.backward()
    assert made.grad.isfinite().all()


@pytest.mark.parametrize(("first", "second"), [(3, 3), (5, 6)])
def test_too_few_tokens_or_other_ones_are_refused(first, second):
    with pytest.raises(UsageError, match=f"{first} and {second} tokens"):
        linear_cka(tokens(1, first, 4), tokens(2, second, 4))


def test_a_batch_of_too_few_tokens_contributes_nothing():
    counted = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert cka_loss([torch.randn(2, 3, 8)], [torch.randn(2, 3, 4)], counted).item() == 0
