"""Rows of a data file: questions with answers, or text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from hal.bundled.arithmetic import Problem
from hal.errors import UsageError

QUESTIONS: Final = ("question", "problem", "prompt")
ANSWERS: Final = ("answer", "solution", "reply")


def question_and_answer(row: dict[str, Any]) -> Problem | None:
    """The question and answer of a row, None where it lacks either."""
    question = next((row[key] for key in QUESTIONS if isinstance(row.get(key), str)), None)
    answer = next((row[key] for key in ANSWERS if isinstance(row.get(key), str)), None)
    return Problem("data", question, answer, "") if question is not None and answer is not None else None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl or .parquet file; a missing, empty or unreadable one is a UsageError."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise UsageError(f"data file {path} must end in .jsonl or .parquet")
    try:
        rows = _parquet(path) if path.suffix == ".parquet" else _jsonl(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read data file {path}: {' '.join(str(error).split())}") from error
    if not rows:
        raise UsageError(f"data file {path} holds no rows")
    return rows


def _jsonl(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError("reading .parquet needs pyarrow: pip install 'srdd-hal[data]', or give .jsonl") from error
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows
