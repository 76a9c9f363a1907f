"""Of a question with its answer only the answer is learnt."""

from __future__ import annotations

import pytest

from hal.bundled import model_dir
from hal.bundled.arithmetic import Problem
from hal.models import read_tokenizer
from hal.supervised import IGNORED, collate, example
from tests.conftest import byte_level_tokenizer

PROBLEM = Problem("addition", "What is 40+2?", "42", "40+2")


@pytest.fixture(params=["chat template", "none"])
def tokenizer(request):
    return read_tokenizer(model_dir(), False) if request.param == "chat template" else byte_level_tokenizer()


def test_the_labels_are_the_answer_and_what_ends_it(tokenizer):
    made = example(PROBLEM, tokenizer)
    asked = [token for token, label in zip(made["input_ids"], made["labels"], strict=True) if label == IGNORED]
    told = [label for label in made["labels"] if label != IGNORED]
    assert made["input_ids"] == asked + told
    assert "What is 40+2?" in tokenizer.decode(asked)
    assert tokenizer.decode(told, skip_special_tokens=True).strip() == "42"


def test_a_batch_is_filled_on_the_right_with_what_nobody_learns():
    batch = collate([{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}], padding=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
