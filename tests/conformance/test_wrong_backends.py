"""A backend that is wrong on purpose fails, in the right cases and in no others; one that merely rounds passes."""

from __future__ import annotations

import fnmatch

import pytest
import torch
from torch.nn import functional

from conformance.runner import run_case
from hal import noise
from hal.ops import CATALOGUE
from hal.ops.deadzone import survivors

PRODUCTS = ("matmul", "bmm", "linear", "attention")


def short_accumulation(a, b):
    """Products summed one after another in bfloat16."""
    total = torch.zeros(*a.shape[:-1], b.shape[-1], dtype=torch.bfloat16)
    for k in range(a.shape[-1]):
        total = total + (a[..., k : k + 1].float() @ b[..., k : k + 1, :].float()).to(torch.bfloat16)
    return total.to(a.dtype)


def strict_threshold(x, threshold, scope="tensor"):
    """Off by one: what equals the threshold dies too."""
    kept = survivors(x, threshold, scope)
    size = x.abs().float()
    largest = size.amax() if scope == "tensor" and x.numel() else size.amax(-1, keepdim=True)
    return torch.where(kept & (size > largest * threshold), x, 0.0)


def biased(name):
    def noisy(x, sigma, *key):
        return CATALOGUE[name].default(x, sigma, *key) + 0.02 * sigma

    return noisy


def saturated(result):
    limit = torch.finfo(result.dtype).max
    return result.nan_to_num(0.0, limit, -limit)


def flushed(result):
    return torch.where(result.abs().float() < 2.0**-126, 0.0, result)


def failures(outcomes):
    return {name: message for name, (verdict, message) in outcomes.items() if verdict == "fail"}


def test_rounding_to_eleven_bits_fails_in_float32_products_and_nowhere_else(make_backend, run_on, short_inputs):
    backend = make_backend(short_inputs(*PRODUCTS))
    failed = failures(run_on(backend, "operators/*/odd/normal", "differences/01-*", "differences/02-*"))
    assert set(failed) == {
        *(f"operators/{name}/float32/odd/normal" for name in PRODUCTS),
        "differences/01-full-precision",
        "differences/02-summation-order",
    }
    assert "in units of what rounding explains" in failed["operators/matmul/float32/odd/normal"]
    assert "got" in failed["operators/matmul/float32/odd/normal"]


def test_flushed_subnormals_fail_where_equality_is_asked_for(make_backend, run_on, each_result):
    outcomes = run_on(make_backend(each_result(flushed)), "operators/*/odd/subnormal", "operators/*/odd/normal")
    failed = failures(outcomes)
    assert failed
    assert all(name.endswith("subnormal") for name in failed)
    assert {"operators/clamp/float32/odd/subnormal", "operators/deadzone/bfloat16/odd/subnormal"} <= set(failed)
    assert "equality was asked for" in failed["operators/clamp/float32/odd/subnormal"]


@pytest.mark.usefixtures("flushing")
def test_a_processor_that_flushes_is_told_in_which_operators(make_backend, case_named):
    result = run_case(make_backend(), case_named("differences/18-subnormals"))
    assert result.verdict == "fail"
    assert "flushed in: addition, product, product of normal numbers, division, comparison" in result.message


def test_tanh_gelu_for_exact_gelu_fails_in_every_dtype_and_is_named(make_backend, run_on):
    backend = make_backend({"gelu": lambda x: functional.gelu(x, approximate="tanh")})
    failed = failures(
        run_on(backend, "operators/*/odd/normal", "sweeps/*", "differences/08-*", "gradients/*/odd/normal")
    )
    assert {f"operators/gelu/{dtype}/odd/normal" for dtype in ("float32", "bfloat16", "float16")} <= set(failed)
    assert {"sweeps/gelu/float16", "sweeps/gelu/bfloat16", "gradients/gelu/float32/odd/normal"} <= set(failed)
    assert all("/gelu" in name or name == "differences/08-gelu-form" for name in failed)
    assert "computes the tanh form" in failed["differences/08-gelu-form"]


def test_a_threshold_off_by_one_fails_at_ties(make_backend, run_on):
    failed = failures(run_on(make_backend({"deadzone": strict_threshold}), "deadzone/*"))
    assert {f"deadzone/ties/{dtype}" for dtype in ("float32", "bfloat16", "float16")} <= set(failed)
    assert "got 0, expected" in failed["deadzone/ties/float32"]
    assert not any(name.startswith(("deadzone/batching", "deadzone/gradient")) for name in failed)


@pytest.mark.parametrize("name", ["additive_noise", "relative_noise"])
def test_biased_noise_fails_by_its_mean(make_backend, run_on, name):
    failed = failures(run_on(make_backend({name: biased(name)}), "noise/*"))
    kind = "moments" if name == "additive_noise" else "relative"
    for mode in ("exact", "fast"):
        message = failed[f"noise/{kind}/{mode}"]
        assert message.startswith("mean of")
        assert "standard errors over 262144 values" in message
    assert "noise/operators" in failed
    assert "noise/bits" not in failed


def test_noise_that_repeats_between_streams_is_not_independent(make_backend, run_on):
    def one_stream(x, sigma, seed, stream=0, start=0, mode="exact"):
        return x + sigma * noise.normal(x.shape, seed=seed, start=start, mode=mode)

    failed = failures(run_on(make_backend({"additive_noise": one_stream}), "noise/independence"))
    assert "correlate" in failed["noise/independence"]


def test_short_accumulation_fails_in_products(make_backend, run_on):
    backend = make_backend({"matmul": short_accumulation})
    failed = failures(run_on(backend, "operators/*/odd/normal", "differences/02-*"))
    assert {name for name in failed if name.startswith("operators")} == {
        f"operators/matmul/{dtype}/odd/normal" for dtype in ("float32", "bfloat16", "float16")
    }
    assert "differences/02-summation-order" in failed


def test_saturating_overflow_fails_wherever_infinity_belongs(make_backend, run_on, each_result):
    outcomes = run_on(make_backend(each_result(saturated)), "operators/*/odd/nonfinite", "operators/*/odd/normal")
    failed = failures(outcomes)
    assert all(name.endswith("nonfinite") for name in failed)
    assert {f"operators/{name}/float16/odd/nonfinite" for name in (*PRODUCTS, "silu", "rms_norm")} <= set(failed)
    assert "are finite on one side only" in failed["operators/silu/float16/odd/nonfinite"]


@pytest.mark.parametrize("kind", ["plain", "reordered", "wide"])
def test_a_device_that_merely_rounds_otherwise_passes(make_backend, run_on, kind):
    def reordered(a, b):
        return torch.matmul(a.flip(-1), b.flip(-2))

    def wide(a, b):
        return torch.matmul(a.double(), b.double()).to(a.dtype)

    overrides = {
        "reordered": {"matmul": reordered, "bmm": reordered},
        "wide": {"matmul": wide, "bmm": wide},
        "plain": {},
    }
    outcomes = run_on(
        make_backend(overrides[kind]), "operators/*/odd/*", "deadzone/*", "quantisation/*", "differences/02*"
    )
    assert failures(outcomes) == {}
    assert any(fnmatch.fnmatch(name, "operators/matmul/*") for name in outcomes)


def test_an_operator_that_raises_or_has_another_shape_fails_its_own_cases(make_backend, run_on):
    def broken(x):
        raise RuntimeError("kernel 0x17\nnot found")

    backend = make_backend({"silu": broken, "softmax": lambda x: functional.softmax(x, -1)[..., :-1]})
    failed = failures(run_on(backend, "operators/*/float32/odd/normal"))
    assert set(failed) == {"operators/silu/float32/odd/normal", "operators/softmax/float32/odd/normal"}
    assert failed["operators/silu/float32/odd/normal"] == "raised RuntimeError: kernel 0x17 not found"
    assert "has shape (3, 5, 36), expected (3, 5, 37)" in failed["operators/softmax/float32/odd/normal"]
