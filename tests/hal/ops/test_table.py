"""The catalogue and a backend's view of it, and how results are compared."""

from __future__ import annotations

import math

import pytest
import torch

import hal
from hal.ops import CATALOGUE, Op, OpTable, SampleSpec, as_tensors, error_bound, host64, register

NAMES = {
    "matmul", "bmm", "linear", "embedding", "softmax", "silu", "gelu", "gelu_tanh", "swiglu", "clamp", "saturate",
    "rms_norm", "layer_norm", "cross_entropy", "rope", "attention", "deadzone", "relative_noise", "additive_noise",
    "fake_quantize_mxfp4", "fake_quantize_nvfp4", "fake_quantize_int8",
    "moments", "quantile", "histogram", "multiplicity", "tensor_digest", "matmul_checksum",
}  # fmt: skip


def native(*arguments):
    return ("native", *arguments)


def table(overrides=None, unsupported=None):
    return OpTable("mine", overrides or {}, unsupported or {})


def test_catalogue_holds_the_operators_of_the_design():
    assert set(CATALOGUE) == NAMES


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_entries_are_complete(name):
    op = CATALOGUE[name]
    assert op.name == name
    assert op.signature.startswith(f"{name}(")
    assert "->" in op.signature
    assert op.default.__doc__


def test_default_is_used_without_an_override():
    assert table().silu is CATALOGUE["silu"].default
    assert not table().is_native("silu")


def test_override_is_used_where_there_is_one():
    ops = table({"silu": native})
    assert ops.silu(1, 2) == ("native", 1, 2)
    assert ops.is_native("silu")
    assert ops.gelu is CATALOGUE["gelu"].default


def test_unknown_operator_is_refused_with_the_known_ones():
    with pytest.raises(hal.UsageError, match="unknown operator 'relu'; the catalogue has: additive_noise, "):
        table().get("relu")


def test_unsupported_operator_gives_the_reason():
    with pytest.raises(hal.UnsupportedError, match="backend 'mine' does not support operator 'bmm': no batches"):
        _ = table(unsupported={"bmm": "no batches"}).bmm


@pytest.mark.parametrize("where", ["overrides", "unsupported"])
def test_names_outside_the_catalogue_are_refused(where):
    with pytest.raises(hal.UsageError, match="backend 'mine' names operators that are not in the catalogue: a, b"):
        table(**{where: {"b": native, "a": native}})


def test_table_lists_the_catalogue():
    assert dir(table()) == sorted(CATALOGUE)
    assert not hasattr(table(), "__wrapped__")


def test_a_second_operator_of_a_name_is_refused():
    with pytest.raises(hal.UsageError, match="operator 'silu' is already in the catalogue"):
        register(CATALOGUE["silu"])


def test_host64_keeps_the_history():
    x = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    host64(x).sum().backward()
    assert host64(x).dtype == torch.float64
    assert x.grad.tolist() == [1.0] * 3


def test_results_of_any_structure_become_tensors():
    assert [part.tolist() for part in as_tensors((1, 2.5, torch.ones(1, requires_grad=True)))] == [1, 2.5, [1.0]]
    assert as_tensors(7)[0].item() == 7


def test_bound_grows_with_the_terms_and_the_dtype():
    op = CATALOGUE["matmul"]
    small, large = (torch.full((1, 4), value) for value in (1.0, 1000.0))
    weight = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    ones, thousands = (float(error_bound(op, (a, weight), torch.float32)[0]) for a in (small, large))
    assert thousands == pytest.approx(1000 * ones)
    assert float(error_bound(op, (small, weight.abs()), torch.bfloat16)[0]) > 4 * 2**-8


def test_bound_of_an_exact_operator_is_zero():
    arguments = CATALOGUE["deadzone"].sample(SampleSpec())
    assert not error_bound(CATALOGUE["deadzone"], arguments, torch.float32)[0].any()


@pytest.mark.parametrize("factor", [1.01, 1.0 + 2**-6])
def test_bound_catches_an_implementation_that_is_wrong_by_a_percent(factor):
    for name in ("matmul", "softmax", "silu", "rms_norm", "attention", "rope"):
        op = CATALOGUE[name]
        arguments = op.sample(SampleSpec(torch.bfloat16, "odd", "normal"))
        wrong = op.reference(*arguments) * factor
        assert bool(((wrong - op.reference(*arguments)).abs() > error_bound(op, arguments, torch.bfloat16)[0]).any())


def test_an_operator_may_be_defined_outside(monkeypatch):
    monkeypatch.setattr("hal.ops.catalogue.CATALOGUE", dict(CATALOGUE))
    op = Op(
        "double", "double(x[...]) -> [...]", lambda x: x * 2, lambda x: host64(x) * 2, lambda spec: (spec.data("x", 3),)
    )
    register(op)
    assert table().double(math.pi) == 2 * math.pi
