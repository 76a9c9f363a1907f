"""Accuracy counts exact greedy replies and does not depend on the batch; the interval is Wilson's."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from hal.bundled.arithmetic import problems
from hal.bundled.evaluate import Accuracy, accuracy, replies, score, text_loss
from hal.errors import UsageError

ASKED = problems("held-out", 12, seed=1)
TEXTS = ["A short text.", "A second text that is quite a lot longer than the first.", "Third."]


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (7, 10), (60, 60), (811, 1000)])
def test_the_interval_is_wilsons(correct, total):
    z, p = 1.959964, correct / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    assert Accuracy(correct, total).interval == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_it_reads_as_a_sentence_part():
    assert str(Accuracy(3, 4)) == "75.0% (3/4, 95 % interval 30.1% to 95.4%)"


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (5, 4), (-1, 4)])
def test_impossible_counts_are_refused(correct, total):
    with pytest.raises(UsageError, match=f"{correct} of {total}"):
        Accuracy(correct, total)


def test_only_the_exact_answer_is_right():
    given = [problem.answer for problem in ASKED]
    assert score(ASKED, given) == Accuracy(12, 12)
    given[:3] = ["", given[1] + "0", "x" + given[2]]
    assert score(ASKED, given) == Accuracy(9, 12)


def test_replies_do_not_depend_on_the_batch(untrained, tokenizer):
    untrained.eval()
    alone = replies(untrained, tokenizer, ASKED, batch_size=1)
    assert replies(untrained, tokenizer, ASKED, batch_size=12) == alone
    assert replies(untrained, tokenizer, ASKED[:5], batch_size=3) == alone[:5]


def test_an_untrained_model_knows_nothing(untrained, tokenizer):
    assert accuracy(untrained.eval(), tokenizer, ASKED).correct <= 2


@torch.no_grad()
def test_text_loss_is_the_mean_over_tokens_whatever_the_batch(untrained, tokenizer):
    untrained.eval()
    total, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        total += float(functional.cross_entropy(untrained(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    for batch_size in (1, 2, 3):
        assert text_loss(untrained, tokenizer, TEXTS, batch_size=batch_size) == pytest.approx(total / count, rel=1e-4)


def test_text_is_cut_to_the_length_asked_for(untrained, tokenizer):
    untrained.eval()
    start = tokenizer.decode(tokenizer(TEXTS[1]).input_ids[:6])
    cut = text_loss(untrained, tokenizer, [TEXTS[1]], max_tokens=6)
    assert cut == pytest.approx(text_loss(untrained, tokenizer, [start]), rel=1e-5)


def test_arguments_that_measure_nothing_are_refused(untrained, tokenizer):
    with pytest.raises(UsageError, match="give at least one text"):
        text_loss(untrained, tokenizer, [])
    with pytest.raises(UsageError, match="batch_size 0"):
        replies(untrained, tokenizer, ASKED, batch_size=0)
