"""What students are trained and measured on."""

from __future__ import annotations

import json

import pytest
import torch

from distill.training.data import batches, bundled_data, file_data, padding_token, text_data
from hal.bundled import model_dir
from hal.errors import UsageError
from hal.models import read_tokenizer
from hal.ops.loss import IGNORED

TOKENIZER = read_tokenizer(model_dir(), False)


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def questions(number, start=0):
    return [{"question": f"What is {at}+1?", "answer": str(at + 1)} for at in range(start, start + number)]


def test_the_bundled_problems_that_are_held_out_are_not_in_training():
    data = bundled_data(TOKENIZER, 50, 20, seed=0)
    shown = {tuple(row["input_ids"]) for row in data.train}
    assert len(data.train) == 50
    assert not any(tuple(row["input_ids"]) in shown for row in data.held_out)
    assert len(data.problems) == 20


def test_a_file_is_divided_into_what_is_trained_on_and_what_is_not(tmp_path):
    path = written(tmp_path / "data.jsonl", questions(10))
    data = file_data(TOKENIZER, path, None, 6, 4, 64, seed=0)
    assert (len(data.train), len(data.held_out), len(data.problems)) == (6, 4, 4)
    texts = [TOKENIZER.decode(row["input_ids"]) for row in (*data.train, *data.held_out)]
    assert len(set(texts)) == 10
    assert data != file_data(TOKENIZER, path, None, 6, 4, 64, seed=1)


def test_held_out_rows_may_have_a_file_of_their_own(tmp_path):
    path, other = (written(tmp_path / f"{at}.jsonl", questions(5, at)) for at in (0, 100))
    data = file_data(TOKENIZER, path, other, 5, 5, 64, seed=0)
    assert {problem.question for problem in data.problems} == {row["question"] for row in questions(5, 100)}


def test_text_is_predicted_whole_and_cut(tmp_path):
    rows = [{"text": "Water boils at 100 degrees."}, {"text": "The letter lies in the drawer, unopened."}]
    data = file_data(TOKENIZER, written(tmp_path / "data.jsonl", rows), None, 1, 1, 10, seed=0)
    assert data.train[0]["labels"] == data.train[0]["input_ids"]
    assert len(data.train[0]["input_ids"]) == 10
    assert data.problems == ()


def test_a_short_file_is_trained_on_whole(tmp_path):
    data = file_data(TOKENIZER, written(tmp_path / "data.jsonl", questions(5)), None, 100, 2, 64, seed=0)
    assert (len(data.train), len(data.held_out)) == (3, 2)


def test_english_is_there_for_any_tokenizer_and_held_out_passages_are_others():
    data = text_data(TOKENIZER, 30, 1000, 16, seed=0)
    assert len(data.train) == 30
    assert 50 < len(data.held_out) < 1000
    assert data.problems == ()
    whole = text_data(TOKENIZER, 10_000, 1000, 500, seed=0)
    shown = {tuple(row["input_ids"]) for row in whole.train}
    assert not any(tuple(row["input_ids"]) in shown for row in whole.held_out)


@pytest.mark.parametrize(
    ("rows", "words"),
    [(questions(3), "none is left to train on"), ([*questions(3), {"query": "x"}], "row 4 is neither")],
)
def test_too_few_or_other_rows_are_named(tmp_path, rows, words):
    with pytest.raises(UsageError, match=words):
        file_data(TOKENIZER, written(tmp_path / "data.jsonl", rows), None, 10, 3, 64, seed=0)


def test_batches_are_filled_with_what_does_not_count():
    rows = [{"input_ids": [4, 5, 6], "labels": [4, 5, 6]}, {"input_ids": [7], "labels": [7]}] * 2
    made = list(batches(rows, 3, padding_token(TOKENIZER), torch.device("cpu")))
    assert [len(batch["input_ids"]) for batch in made] == [3, 1]
    assert made[0]["labels"][1].tolist() == [7, IGNORED, IGNORED]
    assert made[0]["attention_mask"].sum() == 7


def test_a_question_that_is_too_long_loses_its_beginning_and_keeps_its_answer(tmp_path):
    rows = [{"question": "What is " + "very " * 60 + "1+1?", "answer": "2"} for _ in range(4)]
    data = file_data(TOKENIZER, written(tmp_path / "data.jsonl", rows), None, 2, 2, 16, seed=0)
    for row in (*data.train, *data.held_out):
        assert len(row["input_ids"]) == 16
        told = [label for label in row["labels"] if label != IGNORED]
        assert TOKENIZER.decode(told, skip_special_tokens=True).strip() == "2"
    assert data.problems == []  # not asked, because it was not learnt whole


def test_rows_that_predict_nothing_are_left_out(tmp_path):
    rows = [{"text": text} for text in ("", "a", "Water boils.", "", "The letter lies there.", "")]
    path = written(tmp_path / "data.jsonl", rows)
    data = file_data(TOKENIZER, path, path, 6, 6, 16, seed=0)
    assert len(data.train) == len(data.held_out) == 2
    assert len(file_data(TOKENIZER, path, None, 1, 1, 16, seed=3).train) == 1  # others are taken in their place
    mixed = written(tmp_path / "mixed.jsonl", [{"text": ""}, *questions(3)])
    assert len(file_data(TOKENIZER, path, mixed, 6, 4, 64, seed=0).problems) == 3


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_file_of_rows_that_predict_nothing_is_named(tmp_path, split):
    good = written(tmp_path / "good.jsonl", questions(3))
    empty = written(tmp_path / "empty.jsonl", [{"text": ""}] * 3)
    files = (empty, good) if split == "train" else (good, empty)
    with pytest.raises(UsageError, match=r"empty\.jsonl has too few rows with a token .* --max-tokens 64"):
        file_data(TOKENIZER, *files, 3, 3, 64, seed=0)
