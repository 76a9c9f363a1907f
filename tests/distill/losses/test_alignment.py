"""Sequences are aligned at their last tokens, wherever the padding is."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.losses.alignment import at, common_positions, last_positions, masked_mean

LONG, SHORT = torch.ones(1, 6), torch.ones(1, 4)


def test_the_shorter_sequence_meets_the_end_of_the_longer():
    ours, theirs, both = common_positions(LONG, SHORT)
    assert ours.tolist() == [[2, 3, 4, 5]]
    assert theirs.tolist() == [[0, 1, 2, 3]]
    assert both.all()


def test_a_length_leaves_the_last():
    ours, theirs, _ = common_positions(LONG, LONG, length=2)
    assert ours.tolist() == theirs.tolist() == [[4, 5]]


def test_padding_on_either_side_is_passed_over():
    right, left = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([[0, 0, 1, 1, 1]])
    ours, theirs, both = common_positions(right, left, length=3)
    assert ours.tolist() == [[0, 1, 2]]
    assert theirs.tolist() == [[2, 3, 4]]
    assert both.all()


def test_a_row_with_fewer_tokens_than_others_says_so():
    counted = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    positions, _, both = common_positions(counted, counted)
    assert both.tolist() == [[True] * 4, [False, False, True, True]]
    assert positions[1, 2:].tolist() == [0, 1]


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 12))
def test_the_last_positions_are_those_of_counted_tokens_in_order(counted, number):
    number = min(number, len(counted))
    found = last_positions(torch.tensor([counted]), number)[0].tolist()
    wanted = [place for place, counts in enumerate(counted) if counts][-number:]
    assert found[number - len(wanted) :] == wanted


def test_tokens_are_taken_from_vectors_and_from_numbers():
    vectors = torch.arange(12.0).reshape(1, 4, 3)
    places = torch.tensor([[3, 1]])
    assert at(vectors, places).tolist() == [[[9, 10, 11], [3, 4, 5]]]
    assert at(vectors[..., 0], places).tolist() == [[9, 3]]


def test_a_mean_under_weights():
    assert masked_mean(torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 1.0]])) == 2
