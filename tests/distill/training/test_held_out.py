"""A student is asked as it was taught, and given room for the longest answer."""

from __future__ import annotations

import math

from distill.students import Models
from distill.training import held_out as module
from distill.training.data import Data
from distill.training.held_out import ACCURACY, LOSS, held_out
from hal.bundled.arithmetic import Problem
from hal.ops.loss import IGNORED
from hal.supervised import example
from tests.conftest import byte_level_tokenizer, random_model

TOKENIZER = byte_level_tokenizer()
PROBLEMS = [Problem("data", f"{at}+1=", "It is " + "so " * (at // 3) + str(at + 1), "") for at in (1, 30)]


def models():
    model = random_model("qwen2", layers=2)
    return Models(model, (model,), TOKENIZER, ("it", "it"))


def test_it_is_asked_with_what_stood_before_the_answers_in_training(monkeypatch):
    told = {}

    def completions(_model, tokenizer, prompts, max_new_tokens):
        told.update(prompts=[tokenizer(prompt)["input_ids"] for prompt in prompts], room=max_new_tokens)
        return [problem.answer for problem in PROBLEMS]

    monkeypatch.setattr(module, "completions", completions)
    rows = [example(problem, TOKENIZER) for problem in PROBLEMS]
    assert held_out(models(), Data(rows, rows, PROBLEMS), 2)[ACCURACY] == 1
    asked = [[token for token, label in zip(*row.values(), strict=True) if label == IGNORED] for row in rows]
    assert told["prompts"] == asked
    assert told["room"] == sum(label != IGNORED for label in rows[1]["labels"]) + 8


def test_a_batch_that_predicts_nothing_counts_for_nothing():
    row = {"input_ids": [4, 5, 6, 7], "labels": [4, 5, 6, 7]}
    nothing = {"input_ids": [4], "labels": [4]}
    with_it = held_out(models(), Data([], [row, nothing]), 1)
    assert math.isfinite(with_it[LOSS])
    assert with_it == held_out(models(), Data([], [row]), 1)


def test_a_reply_ends_where_the_models_positions_do():
    model = random_model("gpt2", layers=2)  # of 128 positions
    problem = Problem("data", "What is " + "very " * 20 + "1+1?", "2" * 10, "")
    rows = [example(problem, TOKENIZER)]
    assert 110 < len(rows[0]["input_ids"]) < 128
    assert ACCURACY in held_out(Models(model, (model,), TOKENIZER, ("it", "it")), Data(rows, rows, [problem]), 1)
