"""Data comes from the bundled tasks or from a file, and every row that cannot be used is named."""

from __future__ import annotations

import json

import pytest

from aqn.experiments.subject import load_subject
from hal.bundled import model_dir
from hal.errors import UsageError
from hal.registry import get_backend

ROWS = [{"question": "What is 1+1?", "answer": "2"}, {"question": "What is 2+2?", "answer": "4"}]


def written(tmp_path, rows, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def from_file(path):
    return load_subject(get_backend("cpu-reference"), model_dir(), path)


def test_every_seed_draws_its_own_held_out_problems(subject):
    first, again, second = subject.draw(5, 0), subject.draw(5, 0), subject.draw(5, 1)
    assert first == again
    assert first != second
    assert all(entry.problem.split == "held-out" for entry in first)


def test_loss_and_accuracy_are_those_of_a_good_model(subject):
    entries = subject.draw(20, 0)
    assert 0.3 < subject.loss(entries) < 1.0
    assert subject.accuracy(entries).rate > 0.8


def test_a_file_of_questions_is_asked_in_the_models_chat_form(tmp_path):
    subject = from_file(written(tmp_path, ROWS))
    entries = subject.draw(2, 0)
    assert {entry.problem.answer for entry in entries} == {"2", "4"}
    assert all("What is" in entry.text for entry in entries)
    with pytest.raises(UsageError, match="3 samples were asked for and the data holds 2"):
        subject.draw(3, 0)


def test_plain_text_has_a_loss_and_no_accuracy(tmp_path):
    subject = from_file(written(tmp_path, [{"text": "Water boils at 100 degrees."}]))
    entries = subject.draw(1, 0)
    assert subject.loss(entries) > 0
    with pytest.raises(UsageError, match="questions with answers"):
        subject.accuracy(entries)


@pytest.mark.parametrize(
    ("rows", "name", "words"),
    [
        ([], "data.jsonl", "holds no rows"),
        ([{"query": "x"}], "data.jsonl", "row 1 has neither"),
        ([["x"]], "data.jsonl", "row 1 is a list"),
        (ROWS, "data.csv", "must end in"),
    ],
)
def test_what_is_no_data_is_named(tmp_path, rows, name, words):
    with pytest.raises(UsageError, match=words):
        from_file(written(tmp_path, rows, name))


def test_another_model_needs_its_own_data():
    with pytest.raises(UsageError, match="--model needs --data"):
        load_subject(get_backend("cpu-reference"), model_dir())
