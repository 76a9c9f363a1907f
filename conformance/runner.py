"""Run cases on a backend and judge them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from conformance.case import Case, Context
from conformance.declarations import reason_known, reason_unsupported, stale, unmatched
from conformance.evidence import Evidence, Mismatch
from conformance.formats import short
from conformance.results import CaseResult, Results
from conformance.rows import Row, make_row
from conformance.standards import BOUND
from hal.backend import NumericMode, TorchBackend
from hal.errors import HalError, UnsupportedError, one_line

Report = Callable[[CaseResult], None]


@dataclass(frozen=True)
class Plan:
    """Which cases to run and how: the chosen `cases` out of `everything` there is, a word for the choice, and how
    many seeds a seeded case gets.
    """

    cases: Sequence[Case]
    everything: Sequence[Case]
    selection: str = "full"
    seeds: int = 1


def run_plan(
    backend: TorchBackend,
    plan: Plan,
    done: Mapping[str, CaseResult] | None = None,
    report: Report | None = None,
) -> Results:
    """Run the plan on the backend under its exact numeric mode; cases in `done` are taken from there. `report` is
    called with each new result. Errors of the device fail their case; usage errors of ours are raised.
    """
    known = backend.known_failures
    finished = dict(done or {})
    with backend.numeric_mode(NumericMode(deterministic=True)):
        environment = describe(backend)
        for case in plan.cases:
            if case.name in finished:
                continue
            finished[case.name] = run_case(backend, case, plan.seeds)
            if report is not None:
                report(finished[case.name])
    results = tuple(finished[case.name] for case in plan.cases)
    return Results(
        backend=backend.name,
        environment=environment,
        selection=plan.selection,
        seeds=plan.seeds,
        cases=results,
        known=tuple(known.items()),
        stale=stale(known, results),
        unmatched=unmatched(known, plan.everything),
    )


def run_case(backend: TorchBackend, case: Case, seeds: int = 1) -> CaseResult:
    """One case on the backend: skipped where it is declared unsupported, else judged by the derived bound and
    excused where its failure is declared.
    """
    start = time.perf_counter()
    reason = reason_unsupported(backend, case)
    if reason is not None:
        return _result(case, "unsupported", reason)
    rows, gathered, failure = _gather(backend, case, range(seeds if case.seeded else 1))
    if failure is None:
        failure = judge_rows(rows)
    seconds = round(time.perf_counter() - start, 4)
    if failure is None:
        return _result(case, "pass", "", rows, gathered, seconds)
    known = reason_known(backend.known_failures, case.name, case.subject)
    if known is not None:
        return _result(case, "known", f"{known} [{failure}]", rows, gathered, seconds)
    return _result(case, "fail", failure, rows, gathered, seconds)


def judge_rows(rows: Iterable[Row]) -> str | None:
    """What is wrong, by the derived bound, with the first row that fails, or None."""
    judgements = (BOUND.judge(row) for row in rows)
    return next((judgement.reason for judgement in judgements if not judgement.passed), None)


def describe(backend: TorchBackend) -> dict[str, str]:
    """What a result depends on: device, versions and numeric switches."""
    return {
        "device": str(backend.device),
        "device_name": backend.device_name(),
        "backend_status": backend.status,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "host_threads": str(torch.get_num_threads()),
        **backend.versions(),
        **backend.numeric_switches(),
    }


def _gather(backend: TorchBackend, case: Case, seeds: Iterable[int]) -> tuple[list[Row], list[Evidence], str | None]:
    """Rows and evidence of every seed up to the first failure that is not a matter of figures, and that failure."""
    rows: list[Row] = []
    gathered: list[Evidence] = []
    for seed in seeds:
        try:
            evidence = case.check(Context(backend, seed))
            backend.synchronize()
        except Mismatch as mismatch:
            return rows, gathered, str(mismatch)
        except UnsupportedError as error:
            return rows, gathered, f"not declared unsupported for this case, but {error}"
        except HalError:
            raise
        except Exception as error:  # noqa: BLE001 -- a device's operators may raise anything; the case carries it
            return rows, gathered, f"raised {one_line(error)[:300]}"
        gathered.append(evidence)
        rows.extend(make_row(comparison, seed) for comparison in evidence.comparisons)
    return rows, gathered, None


def _result(
    case: Case,
    verdict: str,
    message: str,
    rows: Sequence[Row] = (),
    gathered: Sequence[Evidence] = (),
    seconds: float = 0.0,
) -> CaseResult:
    agreement = {key: value for evidence in gathered for key, value in evidence.agreement.items()}
    facts = {key: value for evidence in gathered for key, value in evidence.facts.items()}
    return CaseResult(
        case=case.name,
        subject=case.subject,
        dtype="" if case.dtype is None else short(case.dtype),
        verdict=verdict,  # type: ignore[arg-type]  # one of four words, by the callers above
        message=message,
        rows=tuple(rows),
        agreement=tuple(agreement.items()),
        facts=tuple(facts.items()),
        inputs=tuple(evidence.inputs for evidence in gathered if evidence.inputs),
        seconds=seconds,
    )
