"""Which token a row belongs to is read off the layer's own arguments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aqn.tokens import layer_positions, token_rows

HIDDEN = torch.zeros(2, 3, 4)
LAYER = nn.Identity()


@pytest.mark.parametrize(
    ("positions", "batch", "expected"),
    [
        (torch.arange(5, 8), 2, (2, 3, [5, 6, 7], None, True)),
        (torch.arange(3)[None], 4, (4, 3, [0, 1, 2], None, True)),
        (torch.arange(3).expand(2, 3), 2, (2, 3, [0, 1, 2], None, True)),
        (torch.tensor([[0, 1], [1, 2]]), 2, (2, 2, [0, 1, 2], [[0, 1], [1, 2]], True)),
        (torch.tensor([7, 3, 3]), 1, (1, 3, [3, 7], [[1, 0, 0]], False)),
        (torch.tensor([[9]]), 1, (1, 1, [9], None, True)),
    ],
)
def test_positions_are_described_by_what_occurs_and_where(positions, batch, expected):
    rows = token_rows(positions, batch)
    place = None if rows.place is None else rows.place.tolist()
    assert (rows.batch, rows.length, rows.unique.tolist(), place, rows.consecutive) == expected
    assert rows.first == expected[2][0]
    assert rows.count == rows.batch * rows.length


@pytest.mark.parametrize("name", ["position_ids", "positions", "cache_position"])
def test_positions_passed_by_name_are_taken(name):
    given = torch.tensor([[4, 5, 6]])
    assert layer_positions(LAYER, HIDDEN, (HIDDEN,), {name: given}, 0) is given


def test_positions_are_taken_beside_hidden_states_of_several_streams():
    given = torch.tensor([[4, 5, 6]])
    hidden = torch.zeros(2, 3, 7, 4)
    assert layer_positions(LAYER, hidden, (hidden,), {"position_ids": given}, 0) is given


def test_positions_passed_first_are_taken():
    given = torch.tensor([4, 5, 6])
    flat = torch.zeros(3, 4)
    assert layer_positions(LAYER, flat, (given, flat, flat), {}, 0) is given


def test_what_is_no_position_is_not_taken():
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert layer_positions(LAYER, HIDDEN, (mask,), {"position_ids": None}, 0).tolist() == [0, 1, 2]
    assert layer_positions(LAYER, HIDDEN, (torch.arange(7),), {}, 0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["past_key_values", "layer_past"])
def test_without_positions_they_are_counted_from_the_layers_own_cache(name):
    class Cache:
        def get_seq_length(self, layer):
            return 10 + layer

    assert layer_positions(LAYER, HIDDEN, (), {name: Cache()}, 2).tolist() == [12, 13, 14]


@pytest.mark.parametrize(
    ("positions", "shape", "expected"),
    [
        ([4, 5], (3, 6, 8), [0, 1, 2, 3, 4, 5]),
        ([4, 5], (3, 1, 6, 8), [0, 1, 2, 3, 4, 5]),
        ([4, 5], (3, 2, 8), [4, 5]),
        ([4, 5], (3, 2, 6, 8), [4, 5]),
        ([4, 5], (6, 8), [4, 5]),
        ([[0, 1], [1, 2]], (2, 3, 8), [0, 1, 2]),
    ],
)
def test_a_product_has_rows_of_these_tokens_or_of_all_so_far(positions, shape, expected):
    tokens = token_rows(torch.tensor(positions), 3)
    found = tokens.of_product(torch.Size(shape))
    assert found.unique.tolist() == expected
    assert (found.place is None) == (tokens.place is None)
