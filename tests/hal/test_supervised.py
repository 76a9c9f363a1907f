"""Of a question with its answer only the answer is learnt."""

from __future__ import annotations

import pytest

from hal.bundled import model_dir
from hal.bundled.arithmetic import Problem
from hal.errors import UsageError
from hal.models import read_tokenizer
from hal.ops.loss import IGNORED
from hal.supervised import asked, collate, example
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


def test_what_is_asked_is_what_stands_before_the_labels(tokenizer):
    made = example(PROBLEM, tokenizer)
    before = made["input_ids"][: made["labels"].count(IGNORED)]
    assert tokenizer(asked(PROBLEM, tokenizer), add_special_tokens=False)["input_ids"] == before


def test_a_template_that_does_not_repeat_its_generation_prompt_is_refused():
    tokenizer = byte_level_tokenizer()
    tokenizer.name_or_path = "thinker"
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    with pytest.raises(UsageError, match=r"the chat template of thinker asks with .*<think>"):
        example(PROBLEM, tokenizer)


def test_a_batch_is_filled_on_the_right_with_what_nobody_learns():
    batch = collate([{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}], padding=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
