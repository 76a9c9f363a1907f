"""The journal of a campaign: one line for each finished case, appended and never rewritten, so that a run killed at
any moment goes on where it was.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hal.errors import UsageError
from srdd.campaign.outcome import Outcome, outcome_from

PATTERN = "cases*.jsonl"


def journal_name(number: int, of: int) -> str:
    """The file name of the journal of shard `number` of `of`."""
    return "cases.jsonl" if of == 1 else f"cases.shard-{number}-of-{of}.jsonl"


def read_journals(directory: Path) -> dict[str, Outcome]:
    """The outcomes by key in every journal of `directory`, those of shards included. A last line that a kill cut
    short is passed over. Raises UsageError for any other line that is no outcome.
    """
    outcomes: dict[str, Outcome] = {}
    for path in sorted(directory.glob(PATTERN)):
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
            try:
                outcome = outcome_from(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError(
                    f"{path} line {number} is not an outcome of this version ({type(error).__name__}): "
                    "remove the line, or give another directory"
                ) from error
            outcomes[outcome.key] = outcome
    return outcomes


class Journal:
    """A journal open for appending; `add` returns when the line is on disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, outcome: Outcome) -> None:
        """Append one outcome."""
        row: dict[str, Any] = outcome.to_json()
        self._file.write((json.dumps(row, sort_keys=True) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Open the journal at `path` for the block, alone, and cut off a line that a kill left unfinished. Raises
    UsageError when it cannot be written or another run has it open.
    """
    try:
        file = path.open("a+b")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose a writable directory") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{path} belongs to a campaign that is running: wait, or choose another --out") from error
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        yield Journal(file)
