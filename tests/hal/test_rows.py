"""Rows come from .jsonl and .parquet alike, and a file that cannot be read is named."""

from __future__ import annotations

import pytest

from hal.errors import UsageError
from hal.rows import question_and_answer, read_rows

ROWS = [{"question": "What is 1+1?", "answer": "2"}, {"question": "What is 2+2?", "answer": "4"}]


def test_parquet_holds_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read_rows(path) == ROWS


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UsageError, match=r"cannot read.*bad\.jsonl"):
        read_rows(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "What is 1+1?", "answer": "2"}, ("What is 1+1?", "2")),
        ({"problem": "1+1", "solution": "2", "level": 5}, ("1+1", "2")),
        ({"prompt": "1+1", "reply": "2"}, ("1+1", "2")),
    ],
)
def test_questions_and_answers_go_by_the_names_of_common_datasets(row, expected):
    found = question_and_answer(row)
    assert (found.question, found.answer) == expected


@pytest.mark.parametrize("row", [{"question": "1+1"}, {"answer": "2"}, {"question": 1, "answer": "2"}, {"text": "x"}])
def test_a_row_that_lacks_either_has_none(row):
    assert question_and_answer(row) is None
