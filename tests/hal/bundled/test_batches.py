"""Packing changes no lesson: each is whole, sees itself alone, and is weighted as it was."""

from __future__ import annotations

from itertools import cycle, islice

import pytest
import torch

from hal.bundled.batches import packed_lessons, running_text
from hal.bundled.lessons import Lesson, lessons
from hal.errors import UsageError

SHORT = Lesson([5, 6, 7], [0.5, 1.0, 1.0])
LONG = Lesson([8, 9, 10, 11, 12], [0.5, 0.5, 1.0, 1.0, 1.0])


def test_rows_hold_whole_lessons_and_padding():
    batch = next(packed_lessons(cycle([SHORT, LONG]), rows=2, length=9, pad=0))
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 0], [5, 6, 7, 8, 9, 10, 11, 12, 0]]
    assert batch.positions[0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0]
    assert batch.segments[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, -1]


def test_the_first_token_of_a_lesson_and_padding_are_not_learnt():
    batch = next(packed_lessons(cycle([SHORT, LONG]), rows=1, length=9, pad=0))
    assert batch.weights[0].tolist() == [0.0, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 0.0]


def test_no_lesson_is_lost_between_batches():
    source = (Lesson([index] * (2 + index % 3), [1.0] * (2 + index % 3)) for index in range(1, 1000))
    batches = islice(packed_lessons(source, rows=2, length=8, pad=0), 20)
    seen = [token for batch in batches for token in batch.ids[batch.ids > 0].tolist()]
    assert sorted(set(seen)) == list(range(1, max(seen) + 1))
    assert all(seen.count(index) == 2 + index % 3 for index in set(seen))


def test_a_lesson_that_fits_no_row_is_named():
    with pytest.raises(UsageError, match="a lesson of 5 tokens does not fit into rows of 4"):
        next(packed_lessons(cycle([LONG]), rows=1, length=4, pad=0))


@torch.no_grad()
def test_a_packed_lesson_has_the_logits_it_has_alone(tokenizer, untrained):
    untrained.eval()
    batch = next(packed_lessons(lessons(tokenizer, 0, 1000), rows=2, length=64, pad=tokenizer.pad_token_id))
    packed = untrained(
        input_ids=batch.ids, attention_mask=batch.attention_mask, position_ids=batch.positions, use_cache=False
    ).logits
    for row in range(2):
        for segment in range(int(batch.segments[row].max()) + 1):
            place = batch.segments[row] == segment
            alone = untrained(input_ids=batch.ids[row][place][None]).logits[0]
            torch.testing.assert_close(packed[row][place], alone, rtol=1e-4, atol=1e-5)


def test_running_text_reads_every_passage_before_any_twice(tokenizer):
    texts = [f"passage {name}." for name in ("one", "two", "three", "four")]
    batches = running_text(texts, tokenizer, rows=1, length=16, seed=0)
    total = sum(len(tokenizer(text).input_ids) + 1 for text in texts)
    ids = torch.cat([next(batches).ids.flatten() for _ in range(1 + total // 16)])[:total]
    assert sorted(tokenizer.decode(ids).split("<|endoftext|>")) == sorted([*texts, ""])


def test_running_text_is_plainly_causal(tokenizer):
    batch = next(running_text(["some text"], tokenizer, rows=2, length=8, seed=0))
    assert batch.attention_mask is None
    assert batch.weights[:, 0].tolist() == [0.0, 0.0]


def test_no_text_at_all_is_refused(tokenizer):
    with pytest.raises(UsageError, match="give at least one passage"):
        next(running_text([], tokenizer, rows=1, length=8, seed=0))
