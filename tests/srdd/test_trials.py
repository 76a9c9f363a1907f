"""More runs find faults that come and go, as often as is stated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import srdd
from hal.errors import UsageError
from hal.structure import find_layer_stack
from srdd.trials import SURE, chance_missed, describe_trials, lowest_rate_found, trials_of


@given(st.floats(0, 1), st.integers(2, 100), st.booleans())
def test_the_chance_is_a_probability_and_falls_with_every_run(rate, trials, replayed):
    now, more = (chance_missed(rate, number, replayed) for number in (trials, trials + 1))
    assert 0 <= more <= now <= 1 + 1e-12


@given(st.integers(2, 1000), st.booleans())
def test_the_lowest_rate_is_found_with_95_percent_and_a_lower_one_is_not(trials, replayed):
    rate = lowest_rate_found(trials, replayed)
    if rate is None:
        assert chance_missed(0.5, trials, replayed) > 1 - SURE
    else:
        assert chance_missed(rate, trials, replayed) <= 1 - SURE
        assert chance_missed(0.99 * rate, trials, replayed) > 1 - SURE


def test_three_runs_alone_promise_nothing_and_a_hundred_find_three_percent():
    assert lowest_rate_found(3, replayed=False) is None
    assert "too few" in describe_trials(3, replayed=False)
    assert lowest_rate_found(100, replayed=False) == pytest.approx(0.0295, abs=1e-3)
    assert "3% of the runs" in describe_trials(100, replayed=False)


def glitching(model, layer, rate, seed):
    """Let the layer's output jump in a share `rate` of its runs."""
    draws = torch.Generator().manual_seed(seed)

    def hook(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if float(torch.rand((), generator=draws)) < rate:
            hidden[..., 3] += 1.0
        return output

    return find_layer_stack(model).layers[layer].register_forward_hook(hook)


@pytest.mark.parametrize(("trials", "rate"), [(12, 0.25), (4, 0.5)])
def test_glitches_are_found_as_often_as_is_stated(make_model, trials, rate):
    model, scans = make_model("llama", layers=2, hidden=32), 40
    found = 0
    for seed in range(scans):
        handle = glitching(model, 1, rate, seed)
        report = srdd.scan(model, level="quick", probes=["instability"], trials=trials)
        handle.remove()
        found += [finding.layer for finding in report.findings] == [1]
    expected = scans * (1 - chance_missed(rate, trials, replayed=False))
    spread = (expected * (1 - expected / scans)) ** 0.5
    assert abs(found - expected) <= 3 * spread + 1


def test_every_run_counts_and_costs_one_forward(make_model):
    model = make_model("llama", layers=2, hidden=32)
    few, many = (srdd.scan(model, level="quick", trials=trials) for trials in (3, 13))
    assert (trials_of(few.measurements), trials_of(many.measurements)) == (3, 13)
    assert many.cost.forward_equivalents == pytest.approx(few.cost.forward_equivalents + 10)


def test_a_single_run_is_refused(make_model):
    with pytest.raises(UsageError, match="1 trials compare nothing"):
        srdd.scan(make_model("llama", layers=2, hidden=32), trials=1)


@pytest.mark.parametrize("every", [2, 3, 4, 5, 6])
def test_a_fault_in_every_call_of_a_number_up_to_six_is_found(make_model, every):
    model, calls = make_model("llama", layers=2, hidden=32), 0

    def lose_a_row(_module, _args, output):
        nonlocal calls
        calls += 1
        if calls % every == 0:
            output[0] = 0
        return output

    find_layer_stack(model).layers[1].register_forward_hook(lose_a_row)
    assert [finding.layer for finding in srdd.scan(model).findings] == [1]
