"""Do two backends agree? Decided from their files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from conformance.declarations import reason_known
from conformance.recheck import recheck
from conformance.results import CaseResult, Results
from conformance.rows import Row
from conformance.runner import judge_rows
from conformance.standards import BOUND, Dual, Single
from hal.errors import UsageError

# The published standards are about operators; all else is judged by what its case allows.
OPERATOR_FAMILIES = ("operators", "gradients", "sweeps")

Outcome = Literal["agree", "disagree", "recheck", "known", "unsupported"]


@dataclass(frozen=True)
class CaseComparison:
    """One case in both files. `recheck`: it exceeds the dual standard's limits and the recheck has yet to decide,
    which counts as disagreement.
    """

    case: str
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True)
class Agreement:
    """The whole comparison: `cases` that are in both files, the names of those in only one, and how many inputs were
    judged against how many the standard asks for (0: none).
    """

    reference: str
    candidate: str
    standard: str
    cases: tuple[CaseComparison, ...]
    only_one: tuple[str, ...]
    inputs: int
    inputs_asked: int

    @property
    def agrees(self) -> bool:
        """Whether no case disagrees or waits for a recheck."""
        return not any(case.outcome in ("disagree", "recheck") for case in self.cases)

    def count(self, outcome: str) -> int:
        """How many cases have that outcome."""
        return sum(case.outcome == outcome for case in self.cases)


def compare(
    reference: Results,
    candidate: Results,
    standard: Single | Dual,
    rechecks: tuple[Results, Results] | None = None,
) -> Agreement:
    """Compare two runs by `standard`. `rechecks` are runs of the same two backends with many seeds, for cases that
    exceed the dual standard's limits. Runs without a common case, or of other inputs under one name, are a UsageError.
    """
    theirs = {case.case: case for case in reference.cases}
    ours = {case.case: case for case in candidate.cases}
    common = [name for name in theirs if name in ours]
    if not common:
        raise UsageError("the two files have no case in common: run the same release of the suite for both")
    if rechecks is not None:
        _require_same_backends((reference, candidate), rechecks)
    many = _second_looks(rechecks)
    declared = dict(reference.known) | dict(candidate.known)
    judged = tuple(
        _excused(_compare_case(theirs[name], ours[name], standard, many.get(name)), ours[name].subject, declared)
        for name in common
    )
    return Agreement(
        reference=reference.backend,
        candidate=candidate.backend,
        standard=standard.name,
        cases=judged,
        only_one=tuple(sorted(set(theirs) ^ set(ours))),
        inputs=sum(len(ours[name].inputs) for name in common),
        inputs_asked=standard.inputs if isinstance(standard, Dual) else 0,
    )


def _compare_case(
    reference: CaseResult, candidate: CaseResult, standard: Single | Dual, many: tuple[CaseResult, CaseResult] | None
) -> CaseComparison:
    name = candidate.case
    for case in (candidate, reference):
        if case.verdict in ("unsupported", "known"):
            return CaseComparison(name, case.verdict, case.message)
    if reference.inputs[: len(candidate.inputs)] != candidate.inputs[: len(reference.inputs)]:
        raise UsageError(f"case {name} had other inputs in the two files: run the same release of the suite for both")
    broken = (
        _behaviour(candidate, "candidate") or _behaviour(reference, "reference") or _agreement(reference, candidate)
    )
    if broken is not None:
        return CaseComparison(name, "disagree", broken)
    chosen = standard if candidate.family in OPERATOR_FAMILIES else BOUND
    return _compare_rows(name, _pairs(reference, candidate), chosen, many)


def _excused(comparison: CaseComparison, subject: str, declared: Mapping[str, str]) -> CaseComparison:
    """A disagreement that either backend declares is known, also where the derived bound let it pass."""
    if comparison.outcome not in ("disagree", "recheck"):
        return comparison
    reason = reason_known(declared, comparison.case, subject)
    if reason is None:
        return comparison
    return CaseComparison(comparison.case, "known", f"{reason} [{comparison.reason}]")


def _behaviour(case: CaseResult, role: str) -> str | None:
    """What a case found that is not a matter of figures."""
    if case.verdict == "fail" and judge_rows(case.rows) is None:
        return f"{role}: {case.message}"
    return None


def _agreement(reference: CaseResult, candidate: CaseResult) -> str | None:
    theirs, ours = dict(reference.agreement), dict(candidate.agreement)
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            return f"{key} is {ours.get(key, 'missing')!r}, on the reference {theirs.get(key, 'missing')!r}"
    return None


def _pairs(reference: CaseResult, candidate: CaseResult) -> list[tuple[Row, Row]]:
    """Rows of the seeds and parts that both have, candidate first."""
    theirs = {(row.part, row.seed): row for row in reference.rows}
    return [(row, theirs[row.part, row.seed]) for row in candidate.rows if (row.part, row.seed) in theirs]


def _compare_rows(
    name: str,
    pairs: list[tuple[Row, Row]],
    standard: Single | Dual,
    many: tuple[CaseResult, CaseResult] | None,
) -> CaseComparison:
    for mine, theirs in pairs:
        if mine.exact and theirs.exact and mine.digest != theirs.digest:
            return CaseComparison(name, "disagree", f"{mine.part}: results that must be equal differ {mine.example}")
        if mine.finite_digest != theirs.finite_digest:
            return CaseComparison(name, "disagree", f"{mine.part}: Inf or NaN lie elsewhere than on the reference")
        judgement = standard.judge(mine, theirs)
        if judgement.passed:
            continue
        if not isinstance(standard, Dual) or mine.misplaced:
            return CaseComparison(name, "disagree", judgement.reason)
        return _second_look(name, judgement.reason, standard, many)
    return CaseComparison(name, "agree")


def _second_look(name: str, reason: str, standard: Dual, many: tuple[CaseResult, CaseResult] | None) -> CaseComparison:
    if many is None:
        return CaseComparison(name, "recheck", reason)
    pairs = _pairs(*many)
    for part in dict.fromkeys(mine.part for mine, _ in pairs):
        mine, theirs = zip(*(pair for pair in pairs if pair[0].part == part), strict=True)
        worse = recheck(standard, mine, theirs)
        if worse is not None:
            return CaseComparison(name, "disagree", f"{reason}; recheck: {worse}")
    return CaseComparison(name, "agree", f"by the recheck ({reason})")


def _second_looks(rechecks: tuple[Results, Results] | None) -> dict[str, tuple[CaseResult, CaseResult]]:
    if rechecks is None:
        return {}
    theirs, ours = ({case.case: case for case in results.cases} for results in rechecks)
    return {name: (theirs[name], ours[name]) for name in theirs if name in ours}


def _require_same_backends(runs: Sequence[Results], rechecks: Sequence[Results]) -> None:
    for run, again in zip(runs, rechecks, strict=True):
        if run.backend != again.backend:
            raise UsageError(
                f"the recheck of backend '{run.backend}' is a file of '{again.backend}': give the recheck of the "
                "reference first, then that of the candidate"
            )
