"""Passages are prose that CPython ships, and held out for good."""

from __future__ import annotations

import re

import pytest

from hal.bundled.text import passages
from hal.errors import UsageError


def test_both_sides_hold_prose_and_share_none():
    training, held_out = passages("train"), passages("held-out")
    assert len(training) > 500
    assert len(held_out) > 20
    assert not set(training) & set(held_out)
    assert all(text.isascii() and len(text) >= 100 for text in held_out)


def test_the_seed_sets_the_order_and_the_count_the_length():
    assert passages("held-out", 5, seed=1) == passages("held-out", 9, seed=1)[:5]
    assert passages("held-out", seed=1) != passages("held-out", seed=2)
    assert sorted(passages("held-out", seed=1)) == sorted(passages("held-out", seed=2))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("all",), "split 'all' is unknown"), (("train", 10**6), "count 1000000 is out of range: train holds")],
)
def test_wrong_arguments_are_named(arguments, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        passages(*arguments)
