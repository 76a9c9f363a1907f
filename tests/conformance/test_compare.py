"""Two files are compared without their devices: what agrees, what disagrees, and what waits for a recheck."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from conformance.compare import compare
from conformance.results import CaseResult
from conformance.standards import STANDARDS
from hal.errors import UsageError
from hal.ops import CATALOGUE

PATTERNS = ("operators/matmul/*/odd/*", "operators/gelu/*/odd/normal", "deadzone/ties/*", "noise/moments/*")
TANH = {"gelu": CATALOGUE["gelu_tanh"].default}


@pytest.fixture
def honest(make_backend, run_whole):
    return run_whole(make_backend(), *PATTERNS)


def outcomes(agreement, outcome):
    return {case.case for case in agreement.cases if case.outcome == outcome}


@pytest.mark.parametrize("name", list(STANDARDS))
def test_a_run_agrees_with_itself(honest, name):
    agreement = compare(honest, honest, STANDARDS[name])
    assert agreement.agrees
    assert agreement.count("agree") == len(honest.cases)


@pytest.mark.parametrize("name", list(STANDARDS))
def test_short_inputs_disagree_by_every_standard(honest, make_backend, run_whole, short_inputs, name):
    wrong = run_whole(make_backend(short_inputs("matmul")), *PATTERNS)
    agreement = compare(honest, wrong, STANDARDS[name])
    bad = outcomes(agreement, "disagree") | outcomes(agreement, "recheck")
    assert bad <= {case.case for case in honest.cases if "matmul/float32" in case.case}
    assert bad


@pytest.mark.parametrize("name", list(STANDARDS))
def test_the_wrong_gelu_disagrees(honest, make_backend, run_whole, name):
    agreement = compare(honest, run_whole(make_backend(TANH), *PATTERNS), STANDARDS[name])
    assert not agreement.agrees
    assert outcomes(agreement, "disagree") | outcomes(agreement, "recheck") <= {
        f"operators/gelu/{dtype}/odd/normal" for dtype in ("float32", "bfloat16", "float16")
    }


def test_a_declared_difference_is_known_also_where_only_the_chosen_standard_sees_it(honest, make_backend, run_whole):
    backend = make_backend(TANH, known_failures={"gelu": "the tanh form"})
    agreement = compare(honest, run_whole(backend, *PATTERNS), STANDARDS["ascend-dual-l2"])
    assert agreement.agrees
    assert len(outcomes(agreement, "known")) == 3


def test_results_that_must_be_equal_are_compared_by_their_digests(honest):
    def changed(case: CaseResult) -> CaseResult:
        if case.case != "deadzone/ties/float32":
            return case
        return replace(case, rows=tuple(replace(row, digest="0") for row in case.rows))

    other = replace(honest, cases=tuple(changed(case) for case in honest.cases))
    assert outcomes(compare(honest, other, STANDARDS["bound"]), "disagree") == {"deadzone/ties/float32"}


def test_infinities_elsewhere_disagree_though_each_passes_alone(honest):
    def changed(case: CaseResult) -> CaseResult:
        if case.case != "operators/matmul/float16/odd/nonfinite":
            return case
        return replace(case, rows=tuple(replace(row, finite_digest="0") for row in case.rows))

    other = replace(honest, cases=tuple(changed(case) for case in honest.cases))
    (found,) = [case for case in compare(honest, other, STANDARDS["mixed-2026"]).cases if case.outcome == "disagree"]
    assert found.reason == "result: Inf or NaN lie elsewhere than on the reference"


def test_texts_that_must_agree_are_named(honest):
    def told(results, verdict):
        first = replace(results.cases[0], agreement=(("verdict", verdict),))
        return replace(results, cases=(first, *results.cases[1:]))

    agreement = compare(told(honest, "healthy"), told(honest, "faulty"), STANDARDS["bound"])
    (found,) = [case for case in agreement.cases if case.outcome == "disagree"]
    assert found.reason == "verdict is 'faulty', on the reference 'healthy'"


def test_a_failed_statement_disagrees_under_every_standard(honest, make_backend, run_whole):
    def biased(x, sigma, *key):
        return CATALOGUE["additive_noise"].default(x, sigma, *key) + 0.1

    wrong = run_whole(make_backend({"additive_noise": biased}), *PATTERNS)
    for standard in STANDARDS.values():
        agreement = compare(honest, wrong, standard)
        assert outcomes(agreement, "disagree") == {"noise/moments/exact", "noise/moments/fast"}


def test_other_inputs_and_no_common_case_are_refused(honest, make_backend, run_whole):
    other = replace(honest, cases=tuple(replace(case, inputs=("x",)) for case in honest.cases if case.inputs))
    with pytest.raises(UsageError, match="had other inputs in the two files"):
        compare(honest, other, STANDARDS["bound"])
    with pytest.raises(UsageError, match="no case in common"):
        compare(honest, run_whole(make_backend(), "hooks/observe"), STANDARDS["bound"])


def test_cases_in_one_file_only_are_told(honest):
    fewer = replace(honest, cases=honest.cases[1:])
    assert compare(honest, fewer, STANDARDS["bound"]).only_one == (honest.cases[0].case,)


def worse(factor):
    """A product with each result moved by a share of its size."""

    def product(a, b):
        exact = torch.matmul(a.double(), b.double())
        return (exact * (1 + factor * 2.0**-24)).to(a.dtype)

    return product


CASE = "operators/matmul/float32/tiny/normal"


def test_the_recheck_decides_over_many_seeds(make_backend, run_whole):
    dual = STANDARDS["ascend-dual-l2"]
    peer, mine = make_backend(), make_backend({"matmul": worse(40)})
    runs = run_whole(peer, CASE), run_whole(mine, CASE)
    first = compare(*runs, dual)
    assert outcomes(first, "recheck") == {CASE}
    assert not first.agrees
    again = run_whole(peer, CASE, seeds=200), run_whole(mine, CASE, seeds=200)
    decided = compare(*runs, dual, again)
    assert outcomes(decided, "disagree") == {CASE}
    assert "over 200 seeds is above 1" in decided.cases[0].reason
    few = run_whole(peer, CASE, seeds=3), run_whole(mine, CASE, seeds=3)
    assert "3 seeds are too few" in compare(*runs, dual, few).cases[0].reason


def test_the_recheck_clears_another_order_of_summation(make_backend, run_whole):
    def reordered(a, b):
        return torch.matmul(a.flip(-1), b.flip(-2))

    dual = STANDARDS["ascend-dual-l2"]
    peer, mine = make_backend(), make_backend({"bmm": reordered})
    pattern = "operators/bmm/float32/tiny/*"
    runs = run_whole(peer, pattern), run_whole(mine, pattern)
    waiting = outcomes(compare(*runs, dual), "recheck")
    assert waiting, "of seven small inputs one at least exceeds a ratio of 1.2 by chance"
    again = run_whole(peer, *waiting, seeds=200), run_whole(mine, *waiting, seeds=200)
    assert compare(*runs, dual, again).agrees


def test_the_recheck_of_another_backend_is_refused(honest):
    other = replace(honest, backend="else")
    with pytest.raises(UsageError, match="the recheck of backend 'tested' is a file of 'else'"):
        compare(honest, honest, STANDARDS["ascend-dual-l2"], (other, honest))
