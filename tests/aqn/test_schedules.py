"""Schedules give the documents' numbers at the documents' steps."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aqn
from aqn.hookspecs import hookimpl
from aqn.schedule_registry import ScheduleRegistry
from hal.errors import UsageError

STEPS = 116


def curve(name, steps=STEPS, **options):
    made = aqn.schedule(name, steps=steps, **options)
    return [made(step) for step in range(steps)]


def test_constant_stays():
    assert aqn.schedule("constant", start=0.03)(0) == aqn.schedule("constant", start=0.03)(10**6) == 0.03


def test_global_decay_runs_straight_from_five_percent_to_a_hundredth_of_it():
    values = curve("global_decay")
    assert (values[0], values[-1]) == (0.05, pytest.approx(0.0005))
    steps = {round(before - after, 12) for before, after in itertools.pairwise(values)}
    assert len(steps) == 1


def test_the_exponential_decay_has_ten_stages_of_which_the_first_is_silent():
    values = curve("global_decay", steps=100, shape="exponential")
    assert values[:10] == [0.0] * 10
    stages = [values[10 * stage] for stage in range(10)]
    assert stages[1] == pytest.approx(1e-2)
    assert stages[9] == pytest.approx(1e-4)
    ratios = [after / before for before, after in itertools.pairwise(stages[1:])]
    assert ratios == pytest.approx([10 ** (-2 / 8)] * 8)
    assert len(set(values)) == 10


def test_epoch_aware_gives_both_epochs_the_documents_ranges():
    values = curve("epoch_aware", epochs=2)
    half = STEPS // 2
    assert values[0] == 0.05
    assert values[half - 1] == pytest.approx(0.01)
    assert values[half] == pytest.approx(0.01)
    assert values[-1] == pytest.approx(0.0005)


def test_epoch_aware_with_other_numbers_of_epochs_is_geometric():
    values = curve("epoch_aware", steps=90, epochs=3, start=0.08, end=0.001)
    ends = [0.08 * (0.001 / 0.08) ** (k / 3) for k in range(4)]
    assert [values[0], values[29], values[30], values[59], values[60], values[89]] == pytest.approx(
        [ends[0], ends[1], ends[1], ends[2], ends[2], ends[3]]
    )


def test_epoch_boundaries_can_be_listed():
    values = curve("epoch_aware", steps=4, epochs=2, boundaries=[0.4, 0.2, 0.1])
    assert values == pytest.approx([0.4, 0.2, 0.2, 0.1])


def test_cosine_and_linear_meet_at_their_ends_and_in_the_middle():
    straight, bent = curve("linear", steps=101), curve("cosine", steps=101)
    for place in (0, 50, 100):
        assert straight[place] == pytest.approx(bent[place], abs=1e-12)
    assert bent[25] > straight[25]


def test_zones_tell_edges_from_the_middle_and_early_from_late():
    made = aqn.schedule("zone", steps=10, layers=12, start=0.1)
    assert [made(0, layer) for layer in (0, 2, 3, 8, 9, 11)] == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.05, 0.05])
    assert made(0) == 0.1
    assert made(5, 6) == pytest.approx(0.02)


@given(
    name=st.sampled_from(["linear", "cosine", "global_decay", "epoch_aware"]),
    steps=st.integers(2, 300),
    start=st.floats(1e-4, 0.5),
)
def test_every_decay_falls_and_stays_within_its_ends(name, steps, start):
    values = curve(name, steps=steps, start=start)
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(values))
    assert max(values) <= start + 1e-12
    assert min(values) >= 0
    assert aqn.schedule(name, steps=steps, start=start)(steps + 50) == values[-1]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cosin", {}, "did you mean 'cosine'"),
        ("linear", {}, "steps"),
        ("linear", {"steps": 0}, "0 steps"),
        ("linear", {"steps": 5, "start": -1.0}, "start is -1"),
        ("linear", {"steps": 5, "begin": 1.0}, "begin"),
        ("global_decay", {"steps": 5, "shape": "round"}, "shape 'round'"),
        ("global_decay", {"steps": 5, "shape": "exponential", "stages": 2}, "stages=2"),
        ("epoch_aware", {"steps": 5, "epochs": 6}, "6 epochs"),
        ("epoch_aware", {"steps": 5, "boundaries": [1, 2]}, "2 boundaries"),
        ("epoch_aware", {"steps": 5, "boundaries": [1, math.nan, 2]}, "nan"),
        ("zone", {"steps": 5, "layers": 0}, "layers=0"),
        ("zone", {"steps": 5, "layers": 4, "edge_share": 0.7}, "edge_share"),
    ],
)
def test_what_makes_no_schedule_is_named(name, options, words):
    with pytest.raises(UsageError, match=words):
        aqn.schedule(name, **options)


def test_a_step_before_the_first_is_refused():
    with pytest.raises(UsageError, match="count from 0"):
        aqn.schedule("constant")(-1)


# -- plug-ins ---------------------------------------------------------------------------------------


class Plugin:
    """An installed entry point, as importlib.metadata gives it."""

    def __init__(self, name, **functions):
        self.name, self.value = name, f"{name}.module"
        self._module = type("Module", (), {key: staticmethod(entry) for key, entry in functions.items()})

    def load(self):
        return self._module


@hookimpl
def aqn_register_schedules(register):
    register("step_down", lambda drop=2: lambda step, layer=None: 0.1 if step < drop else 0.0)


def test_a_third_party_adds_a_schedule():
    registry = ScheduleRegistry([Plugin("theirs", aqn_register_schedules=aqn_register_schedules)])
    made = registry.make("step_down", drop=1)
    assert [made(0), made(1)] == [0.1, 0.0]
    assert not registry.broken


@hookimpl(specname="aqn_register_schedules")
def takes_a_name_that_is_taken(register):
    register("linear", lambda: None)


@hookimpl(specname="aqn_register_schedules")
def raises(register):
    raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        ({"aqn_register_schedules": takes_a_name_that_is_taken}, "already taken"),
        ({"aqn_register_schedules": raises}, "out of order"),
        ({}, "no function aqn_register_schedules"),
    ],
)
def test_a_broken_plugin_is_named_and_harms_no_other(functions, reason):
    registry = ScheduleRegistry(
        [Plugin("bad", **functions), Plugin("theirs", aqn_register_schedules=aqn_register_schedules)]
    )
    assert reason in registry.broken["bad"]
    assert {"linear", "step_down"} <= set(registry.factories)
    with pytest.raises(UsageError, match=f"bad is broken .*{reason}"):
        registry.make("unknown")


def test_a_schedule_that_gives_no_strength_is_caught_at_its_step():
    @hookimpl(specname="aqn_register_schedules")
    def register_bad(register):
        register("falls_through", lambda: lambda step, layer=None: 0.1 - step)

    made = ScheduleRegistry([Plugin("p", aqn_register_schedules=register_bad)]).make("falls_through")
    with pytest.raises(UsageError, match=r"falls_through gives sigma -0.9 at step 1"):
        made(1)
