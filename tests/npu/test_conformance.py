"""Conformance of the simulated npu: faithful arithmetic passes, each wrong kind fails where it should."""

from __future__ import annotations

import contextlib

import pytest

from backends.npu import Npu
from conformance.cases import all_cases, choose
from conformance.cli import main
from conformance.compare import compare
from conformance.results import load_results
from conformance.runner import Plan, run_plan
from conformance.standards import STANDARDS

PATTERNS = (
    "operators/*/odd/*",
    "gradients/*/odd/normal",
    "sweeps/*",
    "deadzone/*",
    "quantisation/*",
    "noise/*",
    "hooks/*",
    "differences/*",
    "layers/*/float32",
    "model/logits/bfloat16",
    "model/gradient/float32",
    "scan/dead_zone/*",
)
FEW = ("operators/*/odd/normal", "operators/*/odd/nonfinite", "operators/*/odd/subnormal", "differences/*")
PRODUCTS = ("matmul", "bmm", "linear", "attention")


@pytest.fixture(scope="module")
def files(npu, tmp_path_factory):
    """What the command writes for both backends. They share a process here, so the npu has to be loaded first:
    torch sizes its autograd engine at the first backward pass.
    """
    folder = tmp_path_factory.mktemp("conformance")
    cases = [word for pattern in PATTERNS for word in ("--cases", pattern)]
    for name in ("cpu-reference", "npu"):
        main(["run", "--backend", name, *cases, "--json", str(folder / f"{name}.json"), "--quiet"])
    return folder / "cpu-reference.json", folder / "npu.json"


@pytest.fixture
def run_with(npu, arithmetic):
    """Run on a device whose arithmetic is as the switches say, whatever the numeric mode asks for."""

    def run(*patterns, **switches):
        class Stubborn(Npu):
            @contextlib.contextmanager
            def numeric_mode(self, mode):
                with super().numeric_mode(mode), arithmetic(**switches):
                    yield

        return run_plan(Stubborn(npu.index), Plan(choose(False, patterns or FEW), all_cases(), "chosen"))

    return run


def failed(results):
    return {case.case: case.message for case in results.cases if case.verdict == "fail"}


def test_faithful_arithmetic_passes_but_for_what_is_declared(files):
    results = load_results(files[1])
    assert failed(results) == {}
    known = {case.subject for case in results.cases if case.verdict == "known"}
    assert known == {"gelu"}
    assert (results.stale, results.unmatched) == ((), ())
    assert results.environment["device_name"].startswith("Ascend910B")


def test_every_documented_difference_was_asked_for(files):
    numbers = [case.case for case in load_results(files[1]).cases if case.family == "differences"]
    assert len(numbers) == 19


@pytest.mark.parametrize("standard", list(STANDARDS))
def test_files_of_host_and_npu_agree_offline(files, standard):
    # The fused rms_norm's gradients round otherwise; where level L2 wants more draws, they are drawn below.
    agreement = compare(*(load_results(file) for file in files), STANDARDS[standard])
    assert [case for case in agreement.cases if case.outcome == "disagree"] == []
    waiting = {case.case for case in agreement.cases if case.outcome == "recheck"}
    assert all(name.startswith("gradients/rms_norm/") for name in waiting)
    if not waiting:
        assert main(["compare", *map(str, files), "--standard", standard, "--quiet"]) == 0


def test_hf32_fails_in_products_under_every_standard(files, run_with):
    results = run_with(hf32_matmul=True)
    names = set(failed(results))
    assert {f"operators/{name}/float32/odd/normal" for name in PRODUCTS} <= names
    assert {"differences/01-full-precision", "differences/02-summation-order"} <= names
    assert all(name.startswith("differences/") or name.split("/")[1] in PRODUCTS for name in names)
    for standard in STANDARDS.values():
        assert not compare(load_results(files[0]), results, standard).agrees


def test_hf32_convolutions_fail_alone(run_with):
    found = failed(run_with(hf32_conv=True))
    assert set(found) == {"differences/01-full-precision"}
    assert "conv2d" in found["differences/01-full-precision"]


def test_saturation_fails_wherever_infinity_belongs(files, run_with):
    results = run_with(saturate=True)
    found = failed(results)
    assert "differences/12-overflow" in found
    assert "operators/matmul/float16/odd/nonfinite" in found
    assert "finite on one side only" in found["operators/matmul/float16/odd/nonfinite"]
    assert not any(name.endswith("/normal") for name in found)
    for standard in STANDARDS.values():
        assert not compare(load_results(files[0]), results, standard).agrees


def test_flushed_subnormals_are_told_and_fail_where_equality_is_asked_for(run_with):
    found = failed(run_with(flush_subnormal=True))
    assert "flushed in: copy, addition, product" in found["differences/18-subnormals"]
    assert set(found) - {"differences/18-subnormals"}
    assert all(name.endswith("/subnormal") or name.startswith("differences") for name in found)


def test_another_order_of_summation_passes(run_with):
    assert failed(run_with(reorder=True)) == {}


def test_a_mended_gelu_makes_the_declaration_stale(run_with):
    results = run_with("operators/gelu/*/odd/normal", "differences/08-*", gelu_tanh=False)
    assert failed(results) == {}
    assert results.stale == ("gelu",)


def test_operators_on_the_host_are_noticed_where_they_are_allowed(run_python):
    code = (
        "import hal; from conformance.cases import choose; from conformance.runner import run_case;"
        "r = run_case(hal.get_backend('npu'), choose(False, ['differences/14-*'])[0]); print(r.verdict, '|', r.message)"
    )
    allowed = run_python(code, TORCH_NPU_FALLBACK_CPU_DISABLE="0")
    assert allowed.stdout.startswith("fail | lgamma ran on the host"), allowed.stdout + allowed.stderr
    refused = run_python(code, TORCH_NPU_FALLBACK_CPU_DISABLE="1")
    assert refused.stdout.startswith("pass |"), refused.stdout + refused.stderr
