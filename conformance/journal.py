"""A long run writes down every case as it ends, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from conformance.results import CaseResult, case_from_json, case_to_json
from hal.errors import UsageError

SUFFIX = ".journal"


class Journal:
    """Results of an unfinished run, one JSON line each after a line that says which run it is. It lies beside the
    file of the finished run, and is removed when that is written.
    """

    def __init__(self, target: Path, identity: dict[str, str]) -> None:
        self.path = target.with_name(target.name + SUFFIX)
        self._header = json.dumps(identity, sort_keys=True)

    def read(self) -> dict[str, CaseResult]:
        """The results so far, none where there is no journal. One of another run is a UsageError: its results are
        of another device, release or choice of cases. A line cut off by a crash is dropped.
        """
        if not self.path.is_file():
            return {}
        header, *lines = self.path.read_text(encoding="utf-8").split("\n")
        if header != self._header:
            raise UsageError(
                f"{self.path} is of another run (other device, versions, code, cases or seeds): "
                "delete it, or write to another file"
            )
        return {result.case: result for result in _whole(lines)}

    @contextmanager
    def writing(self, so_far: Iterable[CaseResult]) -> Iterator[IO[str]]:
        """Begin the journal again with the results so far and keep it open."""
        with self.path.open("w", encoding="utf-8") as file:
            file.write(self._header + "\n")
            for result in so_far:
                append(file, result)
            yield file

    def remove(self) -> None:
        """Remove the journal: the run's file is complete."""
        self.path.unlink(missing_ok=True)


def append(file: IO[str], result: CaseResult) -> None:
    """Write one result so that it outlives this process."""
    file.write(json.dumps(case_to_json(result), allow_nan=False) + "\n")
    file.flush()


def fingerprint(names: Iterable[str]) -> str:
    """A short digest of a choice of cases."""
    return hashlib.blake2b("\n".join(names).encode(), digest_size=8).hexdigest()


def _whole(lines: Iterable[str]) -> Iterator[CaseResult]:
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            return
        yield case_from_json(entry)
