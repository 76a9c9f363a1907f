"""Processes that scan cases side by side. One that dies or hangs costs its case and nothing else."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from hal.errors import BackendUnavailableError, HalError
from srdd.campaign.case import Case
from srdd.campaign.execute import CaseScanner, Setup
from srdd.campaign.outcome import Outcome

Work = tuple[str, Case]  # with its key

_CONTEXT = multiprocessing.get_context("spawn")  # a forked child could use no accelerator that its parent has touched


def scan_all(work: Sequence[Work], setup: Setup, jobs: int, timeout_s: float) -> Iterator[Outcome]:
    """The outcomes of all cases in the order in which `jobs` processes finish them. A case whose process dies, or
    that takes longer than `timeout_s`, has that as its error. Raises HalError where the model cannot be loaded.
    """
    waiting = deque(work)
    workers = [_Worker(setup) for _ in range(min(jobs, len(waiting)))]
    try:
        for worker in workers:
            worker.give(waiting.popleft())
        while busy := [worker for worker in workers if worker.case is not None]:
            for worker in _ready(busy, timeout_s):
                outcome = worker.take(timeout_s)
                if outcome is not None:
                    if waiting:
                        worker.give(waiting.popleft())
                    yield outcome
    finally:
        for worker in workers:
            worker.stop()


def _ready(busy: list[_Worker], timeout_s: float) -> list[_Worker]:
    """The workers that have something to say, or have been silent for too long."""
    soonest = min(worker.since for worker in busy) + timeout_s - time.monotonic()
    said = wait([worker.connection for worker in busy], timeout=max(soonest, 0.0))
    return [worker for worker in busy if worker.connection in said or worker.overdue(timeout_s)]


class _Worker:
    """One process and the case it has in hand (None when idle)."""

    def __init__(self, setup: Setup) -> None:
        self.case: Work | None = None
        self.since = 0.0
        self._setup = setup
        self._start()

    def _start(self) -> None:
        self._ready = False
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, self._setup), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process ends the connection

    def overdue(self, timeout_s: float) -> bool:
        """Whether the case in hand has taken too long."""
        return time.monotonic() - self.since > timeout_s

    def give(self, work: Work) -> None:
        """Hand out a case; a process that has died since its last one is replaced."""
        if not self._process.is_alive():
            self.stop()
            self._start()
        self.case, self.since = work, time.monotonic()
        with suppress(BrokenPipeError):  # it died just now: `take` will find out
            self.connection.send(work)

    def take(self, timeout_s: float) -> Outcome | None:
        """The outcome of the case in hand; None when the process has only said that it is ready. Raises HalError
        for what would befall every case.
        """
        if self.case is None:
            raise ValueError("the worker has no case in hand")
        if not self.connection.poll():
            self.stop()
            return self._failed(f"stopped after {timeout_s:g} s")
        try:
            answer: Outcome | HalError | None = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            cause = _cause(self._process.exitcode)
            if not self._ready:
                raise BackendUnavailableError(
                    f"a campaign's processes do not start: the first ended by {cause}"
                ) from None
            return self._failed(f"its process ended by {cause}")
        if isinstance(answer, HalError):
            raise answer
        if answer is None:
            self._ready = True
        else:
            self.case = None
        return answer

    def _failed(self, error: str) -> Outcome | None:
        if self.case is None:
            return None
        (key, case), self.case = self.case, None
        return Outcome(key, case.content(), error=error)

    def stop(self) -> None:
        """End the process at once: it holds nothing that has to be saved."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _cause(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _serve(connection: Connection, setup: Setup) -> None:
    """The life of a worker: None when it is ready, then cases in and outcomes out until the other side is gone; a
    HalError that is no case's fault is the last thing it says.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the campaign hears it too, and ends its workers
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            scanner = CaseScanner(setup)
            connection.send(None)
            while True:
                key, case = connection.recv()
                scanner.prepare(case.dtype)
                connection.send(scanner.scan(key, case))
        except HalError as error:
            connection.send(error)
