"""Layers meet at equal depth, the last ones always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.losses.layers import chosen_layers, layer_pairs, teacher_layer
from hal.errors import UsageError


def test_every_second_layer_of_a_teacher_twice_as_deep():
    assert [teacher_layer(layer, 6, 12) for layer in range(6)] == [1, 3, 5, 7, 9, 11]


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_last_layers_meet_and_depth_never_turns_back(student, teacher):
    found = [teacher_layer(layer, student, teacher) for layer in range(student)]
    assert found[-1] == teacher - 1
    assert found == sorted(found)
    assert found[0] >= 0
    assert student > teacher or len(set(found)) == student


def test_layers_by_name_and_by_number():
    assert chosen_layers("middle", 12) == [5]
    assert chosen_layers("last", 12) == [11]
    assert chosen_layers("all", 3) == [0, 1, 2]
    assert layer_pairs([0, 5], 6, 12) == [(0, 1), (5, 11)]


@pytest.mark.parametrize("choice", ["first", [], [12], [-1]])
def test_other_layers_are_refused(choice):
    with pytest.raises(UsageError, match="layers"):
        chosen_layers(choice, 12)
