"""What a backend declares: skipped, excused, or reported because nothing needs it."""

from __future__ import annotations

import torch
from torch.nn import functional

from conformance.declarations import covers
from hal.ops import CATALOGUE

TANH = {"gelu": CATALOGUE["gelu_tanh"].default}


def test_an_operators_name_means_every_case_about_it_and_a_pattern_means_names():
    assert covers("gelu", "sweeps/gelu/float16", "gelu")
    assert not covers("gelu", "sweeps/gelu_tanh/float16", "gelu_tanh")
    assert covers("sweeps/gelu/*", "sweeps/gelu/float16", "gelu")
    assert not covers("sweeps/gelu/*", "operators/gelu/float16/odd/normal", "gelu")


def test_a_declared_failure_is_known_and_keeps_what_differs(make_backend, run_whole):
    backend = make_backend(TANH, known_failures={"gelu": "the tanh form"})
    results = run_whole(backend, "operators/gelu/float32/odd/normal", "operators/silu/float32/odd/normal")
    gelu, silu = sorted(results.cases, key=lambda case: case.subject)
    assert (gelu.verdict, silu.verdict) == ("known", "pass")
    assert gelu.message.startswith("the tanh form [error in units")
    assert results.verdict == "pass"
    assert (results.stale, results.unmatched) == ((), ())


def test_a_failure_that_another_declaration_covers_is_not_excused(make_backend, run_whole):
    backend = make_backend(TANH, known_failures={"sweeps/gelu/*": "only there"})
    assert run_whole(backend, "operators/gelu/float32/odd/normal").verdict == "fail"


def test_a_declaration_that_nothing_needs_is_stale_if_its_cases_ran(make_backend, run_whole):
    backend = make_backend(known_failures={"gelu": "long mended", "sweeps/silu/*": "not run here"})
    results = run_whole(backend, "operators/gelu/float32/odd/*")
    assert results.stale == ("gelu",)
    assert results.unmatched == ()


def test_a_declaration_that_names_no_case_is_unmatched(make_backend, run_whole):
    backend = make_backend(known_failures={"sweeps/gelo/*": "misspelt", "softmax-float16-large": "an old name"})
    assert run_whole(backend, "operators/gelu/float32/odd/normal").unmatched == (
        "sweeps/gelo/*",
        "softmax-float16-large",
    )


def test_undeclared_dtypes_and_unsupported_operators_are_not_run(make_backend, run_whole):
    backend = make_backend(dtypes=(torch.float32,), unsupported_ops={"bmm": "no batched product"})
    results = run_whole(backend, "operators/bmm/*/odd/normal", "operators/silu/*/odd/normal", "model/logits/bfloat16")
    found = {case.case: (case.verdict, case.message) for case in results.cases}
    assert found["operators/bmm/float32/odd/normal"] == ("unsupported", "operator bmm: no batched product")
    assert found["operators/silu/float16/odd/normal"][1] == "backend 'tested' does not declare float16"
    assert found["operators/silu/float32/odd/normal"][0] == "pass"
    assert found["model/logits/bfloat16"][0] == "unsupported"
    assert results.verdict == "pass"


def test_an_operator_used_by_another_case_without_being_supported_fails_with_its_reason(make_backend, run_whole):
    backend = make_backend(unsupported_ops={"matmul": "no products"})
    (case,) = run_whole(backend, "differences/01-*").cases
    assert case.verdict == "unsupported"
    (case,) = run_whole(make_backend(unsupported_ops={"histogram": "none"}), "differences/10-*").cases
    assert case.verdict == "fail"
    assert "does not support operator 'histogram': none" in case.message


def test_the_host_declares_what_torch_does_and_nothing_stale(run_whole):
    import hal

    results = run_whole(hal.get_backend("cpu-reference"), "sweeps/gelu/*", "gradients/layer_norm/*float16/large/*")
    assert results.verdict == "pass"
    assert results.count("known") > 1
    assert (results.stale, results.unmatched) == ((), ())


def test_torch_function_of_the_tests_is_the_tanh_form():
    x = torch.linspace(-3, 3, 7)
    assert torch.equal(TANH["gelu"](x), functional.gelu(x, approximate="tanh"))
