"""Subnormal numbers: what one layer flushes and the others keep is a fault of that layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import srdd
from srdd.diagnose import diagnose
from srdd.faults import Fault, simulate
from srdd.measurements import Subnormals
from srdd.replay.capture import record
from srdd.replay.part import run_part
from srdd.replay.raised import with_results_raised
from srdd.replay.subnormal import count_flushed, flushes, subnormal_rows, with_subnormal_results
from tests.conftest import in_turn
from tests.srdd.conftest import DEAD, healthy_stack, layer, replayed

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KEPT, FLUSHED = Subnormals(asked=100, flushed=0), Subnormals(asked=100, flushed=7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from(DTYPES), terms=st.integers(1, 8))
def test_sums_of_a_few_drawn_numbers_are_subnormal_and_exact(seed, dtype, terms):
    drawn = [subnormal_rows(torch.ones(8, 16, dtype=dtype), seed, number)[1::2] for number in range(terms)]
    total = sum(drawn[1:], start=drawn[0])
    assert torch.equal(total.double(), torch.stack(drawn).double().sum(0))
    assert bool((total > 0).all())
    assert bool((total <= torch.finfo(dtype).smallest_normal).all())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = x + self.one(x)
        return x + self.other(x)


def counted(device_layer, x):
    with torch.no_grad(), record(device_layer) as trees:
        device_layer(x)
    call = with_subnormal_results(with_results_raised(trees[0]), seed=0)
    with torch.no_grad():
        (tree,) = run_part(device_layer, call, torch.device("cpu"), lambda given: subnormal_rows(given, seed=0))
    return count_flushed(tree, type(device_layer)().double())


def test_a_layer_that_adds_is_asked_for_each_element_it_hands_on_or_returns():
    assert counted(Residual(), torch.randn(4, 8)) == Subnormals(asked=3 * 2 * 8, flushed=0)


def test_flushed_elements_are_counted():
    device = Residual()
    tiny = torch.finfo(torch.float32).smallest_normal
    device.register_forward_hook(lambda _module, _args, output: torch.where(output.abs() < tiny, 0.0, output))
    assert counted(device, torch.randn(4, 8)) == Subnormals(asked=3 * 2 * 8, flushed=2 * 8)


def test_a_part_that_returns_nothing_like_the_stream_is_not_asked():
    single = nn.Sequential(nn.Linear(8, 8), nn.Flatten(0))
    with torch.no_grad(), record(single) as trees:
        single(torch.randn(()).expand(8))
    assert count_flushed(trees[0], single.double()) is None


class Normed(Residual):
    def forward(self, x):
        return nn.functional.layer_norm(super().forward(x), (8,)) * torch.finfo(x.dtype).smallest_normal


def test_arithmetic_that_may_round_in_several_ways_is_not_asked():
    assert counted(Normed(), torch.randn(4, 8)) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_host_keeps_them_unless_told_otherwise(dtype):
    x = torch.empty(1, dtype=dtype)
    assert not flushes(x)
    if dtype is torch.float32 and torch.set_flush_denormal(True):
        try:
            assert flushes(x)
        finally:
            torch.set_flush_denormal(False)


@pytest.mark.parametrize(("family", "dtype"), in_turn(["llama", "gpt2", "bert", "mixtral"], DTYPES), ids=str)
def test_the_layer_that_flushes_one_unit_is_named(make_model, family, dtype):
    model = make_model(family, layers=3, dtype=dtype)
    with simulate(model, [Fault(kind="flush_subnormals", layer=1, units=1)]):
        report = srdd.scan(model)
    (finding,) = report.findings
    assert (finding.layer, finding.kind, finding.label) == (1, "flush_subnormals", "FLUSH_SUBNORMALS_SOURCE")
    assert [entry.probe for entry in finding.evidence] == ["subnormals"]


def test_layers_that_all_flush_are_those_of_such_a_device(make_model):
    model = make_model("llama", layers=3)
    with simulate(model, [Fault(kind="flush_subnormals", layer=index) for index in range(3)]):
        report = srdd.scan(model)
    assert report.verdict == "healthy"
    assert all(row.subnormals.flushed for row in report.measurements.layers)


def test_a_device_that_flushes_everywhere_is_not_asked(make_model):
    model = make_model("llama", layers=2)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        report = srdd.scan(model)
    finally:
        torch.set_flush_denormal(False)
    assert report.verdict == "healthy"
    assert [row.subnormals for row in report.measurements.layers] == [None, None]


def test_half_of_the_layers_may_be_accused_and_no_more():
    rows = {f"row_{index}": layer(index, subnormals=FLUSHED if index < 3 else KEPT) for index in range(6)}
    assert [finding.layer for finding in diagnose(healthy_stack(**rows)).findings] == [0, 1, 2]
    rows["row_3"] = layer(3, subnormals=FLUSHED)
    assert diagnose(healthy_stack(**rows)).verdict == "healthy"


def test_what_zeroes_larger_numbers_too_is_no_flush():
    rows = {f"row_{index}": layer(index, subnormals=KEPT) for index in range(6)}
    rows["row_3"] = layer(3, subnormals=FLUSHED, replay=replayed(3, "", transfer=DEAD))
    (finding,) = diagnose(healthy_stack(**rows)).findings
    assert finding.kind == "dead_zone"
    assert "subnormals" not in [entry.probe for entry in finding.evidence]
