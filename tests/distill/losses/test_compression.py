"""What is kept of a teacher's tokens."""

from __future__ import annotations

import pytest
import torch

from distill.key_values import KeyValues
from distill.losses.compression import WINDOW, kept_tokens
from hal.errors import UsageError

TOKENS = 20
ALL = torch.ones(1, TOKENS, dtype=torch.bool)


def layer(keys=None):
    made = torch.randn(1, 2, TOKENS, 4, generator=torch.Generator().manual_seed(0))
    return KeyValues(made if keys is None else keys, made)


def attention(favourite=None):
    made = torch.full((1, 4, TOKENS, TOKENS), 0.01)
    if favourite is not None:
        made[..., favourite] = 1.0
    return made


def places(kept):
    return kept[0].nonzero().flatten().tolist()


def test_full_keeps_what_counts():
    counted = ALL.clone()
    counted[:, 15:] = False
    assert torch.equal(kept_tokens("full", None, layer(), counted), counted)


def test_a_right_crop_keeps_the_last_that_count():
    counted = ALL.clone()
    counted[:, 15:] = False
    assert places(kept_tokens("right_crop", 3, layer(), counted)) == [12, 13, 14]


def test_r_kv_keeps_what_the_last_tokens_look_at():
    assert places(kept_tokens("r_kv", 1, layer(), ALL, attention(favourite=5), balance=1.0)) == [5]


def test_only_the_last_tokens_are_asked():
    looked_at = attention()
    looked_at[..., : TOKENS - WINDOW, 3] = 1.0  # by earlier ones
    looked_at[..., TOKENS - WINDOW :, 7] = 0.5
    assert places(kept_tokens("r_kv", 1, layer(), ALL, looked_at, balance=1.0)) == [7]


def test_r_kv_drops_what_is_said_twice():
    keys = layer().keys.clone()
    keys[..., 2:9, :] = keys[..., 2:3, :]  # seven tokens of one key
    kept = places(kept_tokens("r_kv", 10, layer(keys), ALL, attention(), balance=0.0))
    assert not set(kept) & set(range(2, 9))


def test_r_kv_never_keeps_padding():
    counted = ALL.clone()
    counted[:, 10:] = False
    kept = kept_tokens("r_kv", 15, layer(), counted, attention(favourite=12))
    assert torch.equal(kept, counted)


def test_a_length_beyond_the_sequence_keeps_it():
    assert kept_tokens("r_kv", 100, layer(), ALL, attention()).all()


@pytest.mark.parametrize(
    ("method", "length", "weights", "words"),
    [("right_crop", None, None, "keeps None tokens"), ("r_kv", 0, None, "keeps 0"), ("r_kv", 4, None, "eager")],
)
def test_what_is_missing_is_said(method, length, weights, words):
    with pytest.raises(UsageError, match=words):
        kept_tokens(method, length, layer(), ALL, weights)
