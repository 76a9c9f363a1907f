import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srdd.diagnose import diagnose, kurtosis_edges
from srdd.evidence import carries_stream, tie_limit
from srdd.measurements import Gain, LayerMeasurement, PassThrough, Shape, Stability, Transfer
from tests.srdd.conftest import (
    BIASED,
    CLAMPED,
    CLEAN,
    DEAD,
    healthy_stack,
    layer,
    measurements,
    passing,
    replayed,
)

NOISY = Stability(trials=3, spread=0.3, unit=300.0, element=900.0, changed=1.0)
ROOT = Path(__file__).parents[2]


def shape(**changes):
    return replace(layer().shape, **changes)


def test_a_healthy_stack_is_healthy():
    diagnosis = diagnose(healthy_stack())
    assert diagnosis.verdict == "healthy"
    assert diagnosis.findings == diagnosis.notes == ()
    assert diagnosis.labels == ("ok",) * 6
    assert all(0 <= score < 1 for score in diagnosis.scores)


def test_what_was_given_nan_is_not_taken_for_its_source():
    """A kernel may make anything of NaN, in any other module; who made the NaN of sound values is at fault."""
    made, given_nan = replayed(3, "self_attn.k_proj", ("self_attn", "attention"))
    given_nan = replace(given_nan, poisoned=True, transfer=replace(BIASED, violation=1e12))
    (finding,) = diagnose(healthy_stack(row_3=layer(3, replay=(given_nan, made)))).findings
    assert (finding.site, finding.operator) == ("model.layers.3.self_attn.k_proj", "")
    (alone,) = diagnose(healthy_stack(row_3=layer(3, replay=(given_nan,)))).findings
    assert (alone.site, alone.operator) == ("model.layers.3.self_attn", "attention")


# What is damaged at layer 3, the kind it must be called, its label, and the strongest evidence.
ALONE = [
    ({"stability": NOISY}, "noise", "NOISE_SOURCE", "instability"),
    ({"stability": replace(NOISY, changed=0.01, unit=2.0)}, "spike", "NOISE_SOURCE", "instability_element"),
    ({"stability": replace(NOISY, spread=0.01)}, "non_determinism", "NOISE_SOURCE", "instability"),
    ({"pass_through": passing(BIASED)}, "bias", "BIAS_SOURCE", "pass_through"),
    ({"pass_through": passing(CLAMPED)}, "saturation", "SAT_SOURCE", "pass_through"),
    ({"pass_through": passing(DEAD)}, "dead_zone", "DEAD_ZONE", "pass_through"),
    ({"pass_through": passing(replace(BIASED, coverage=0.1))}, "corruption", "CORRUPTION_SOURCE", "pass_through"),
    ({"shape": shape(ties=60)}, "saturation", "SAT_SOURCE", "multiplicity"),
    ({"shape": shape(zeros=9000)}, "dead_zone", "DEAD_ZONE", "zeros"),
    ({"replay": replayed(3, "")}, "bias", "BIAS_SOURCE", "replay"),
    (
        {"pass_through": passing(replace(CLAMPED, units=1)), "gain": Gain(1.0, 0.1, 1.0, discrete=1)},
        "saturation",
        "DISCRETE_SAT",
        "pass_through",
    ),
]


@pytest.mark.parametrize(("damage", "kind", "label", "probe"), ALONE)
@pytest.mark.parametrize("index", [0, 3, 5])
def test_one_damaged_layer_is_the_one_finding(damage, kind, label, probe, index):
    diagnosis = diagnose(healthy_stack(**{f"row_{index}": layer(index, **damage)}))
    [finding] = diagnosis.findings
    assert (finding.layer, finding.kind, finding.label, finding.rank) == (index, kind, label, 1)
    assert finding.evidence[0].probe == probe
    assert all(entry.statistic > entry.threshold for entry in finding.evidence)
    assert 0.5 < finding.confidence < 1
    assert diagnosis.labels[index] == label
    assert diagnosis.labels.count("ok") == 5
    assert [score > 1 for score in diagnosis.scores] == [row == index for row in range(6)]


def test_findings_are_ranked_by_how_far_they_exceed_their_thresholds():
    weak, strong = replace(BIASED, violation=2.0), replace(BIASED, violation=2000.0)
    diagnosis = diagnose(
        healthy_stack(
            8,
            row_1=layer(1, pass_through=passing(weak)),
            row_4=layer(4, finite_output=False),
            row_6=layer(6, pass_through=passing(strong)),
        )
    )
    assert [(finding.rank, finding.layer) for finding in diagnosis.findings] == [(1, 4), (2, 6), (3, 1)]
    confidences = [finding.confidence for finding in diagnosis.findings]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] == 1


def test_confidence_is_a_half_at_the_threshold():
    barely = passing(replace(BIASED, violation=1.000001))
    [finding] = diagnose(healthy_stack(row_2=layer(2, pass_through=barely))).findings
    assert finding.confidence == pytest.approx(0.5, abs=1e-3)


def unmeasured(index, finite_input, finite_output):
    return LayerMeasurement(index, f"model.layers.{index}", finite_input, finite_output)


def test_values_spoilt_between_two_layers_are_blamed_on_the_way_into_the_second():
    rows = {"row_2": unmeasured(2, False, False), "row_3": unmeasured(3, False, False)}
    [finding] = diagnose(healthy_stack(4, **rows)).findings
    assert (finding.layer, finding.kind, finding.site) == (2, "non_finite", "input of model.layers.2")


def test_values_that_are_not_finite_are_blamed_on_the_layer_where_they_appear():
    rows = [layer(0), layer(1), unmeasured(2, True, False), unmeasured(3, False, False), unmeasured(4, False, False)]
    diagnosis = diagnose(measurements(*rows))
    [finding] = diagnosis.findings
    assert (finding.layer, finding.kind, finding.site) == (2, "non_finite", "model.layers.2")
    assert diagnosis.labels[2:] == ("NON_FINITE_SOURCE", "NON_FINITE_PROP", "NON_FINITE_PROP")


def test_a_first_layer_that_is_fed_nan_points_before_itself():
    diagnosis = diagnose(measurements(unmeasured(0, False, False), unmeasured(1, False, False)))
    [finding] = diagnosis.findings
    assert finding.site == "input of model.layers.0"
    assert finding.kind == "non_finite"


def test_a_layer_behind_a_saturation_that_is_still_piled_up_is_called_propagated():
    piled = shape(pile_up=4.0)
    rows = healthy_stack(
        row_1=layer(1, shape=piled), row_3=layer(3, pass_through=passing(CLAMPED)), row_4=layer(4, shape=piled)
    )
    assert diagnose(rows).labels == ("ok", "ok", "ok", "SAT_SOURCE", "SAT_PROP", "ok")


def test_the_documents_statistics_alone_accuse_nobody():
    odd = layer(2, shape=shape(kurtosis=4000.0, pile_up=9.0), gain=Gain(0.3, 0.1, 4.0, discrete=5))
    assert diagnose(healthy_stack(row_2=odd)).verdict == "healthy"


class TestPlace:
    def finding(self, *failed):
        [finding] = diagnose(healthy_stack(row_3=layer(3, replay=replayed(3, *failed)))).findings
        return finding

    def test_a_single_operator_names_its_module_and_itself(self):
        finding = self.finding("mlp.down_proj", ("mlp.down_proj", "linear"))
        assert (finding.site, finding.operator) == ("model.layers.3.mlp.down_proj", "linear")

    def test_one_operator_in_several_modules_names_what_contains_them(self):
        finding = self.finding(("mlp.up_proj", "linear"), ("mlp.down_proj", "linear"))
        assert (finding.site, finding.operator) == ("model.layers.3.mlp", "linear")
        finding = self.finding(("mlp.up_proj", "linear"), ("self_attn.q_proj", "linear"))
        assert (finding.site, finding.operator) == ("model.layers.3", "linear")

    def test_a_module_that_only_fails_as_a_whole_is_named_as_such(self):
        finding = self.finding("self_attn")
        assert (finding.site, finding.operator) == ("model.layers.3.self_attn", "")

    def test_operators_of_different_names_and_no_module_name_the_layer_not_a_crash(self):
        finding = self.finding(("mlp.up_proj", "linear"), ("mlp.act_fn", "silu"))
        assert finding.site.startswith("model.layers.3")


class TestCarriesStream:
    def rows(self, *transfers):
        return [layer(index, pass_through=entry) for index, entry in enumerate(transfers)]

    def test_an_architecture_in_which_half_the_layers_pass_may_be_judged(self):
        assert carries_stream(self.rows(passing(CLEAN), passing(BIASED)))

    def test_one_in_which_no_layer_does_may_not(self):
        normalising = passing(replace(BIASED, ratio_spread=3.0), growth=2.0**-16)
        assert not carries_stream(self.rows(*[normalising] * 4))

    def test_damage_in_most_layers_of_a_carrying_architecture_does_not_hide_itself(self):
        assert carries_stream(self.rows(passing(CLEAN), *[passing(BIASED)] * 3))
        assert carries_stream(self.rows(*[passing(DEAD)] * 4))

    def test_a_common_factor_in_every_layer_is_an_architecture_not_a_fault(self):
        scaled = passing(replace(BIASED, offset_spread=5.0, ratio=1.4, ratio_spread=0.0), growth=1.4)
        assert not carries_stream(self.rows(*[scaled] * 4))

    def test_a_change_without_a_pattern_in_every_layer_is_an_architecture_not_a_fault(self):
        linear = passing(replace(BIASED, offset_spread=5.0, ratio_spread=3.0), growth=1.2)
        assert not carries_stream(self.rows(*[linear] * 4))

    def test_nothing_measured_is_nothing_known(self):
        assert not carries_stream([])
        assert not carries_stream(self.rows(None, None))

    def test_where_it_does_not_apply_the_report_says_so_and_nobody_is_accused(self):
        normalising = passing(replace(BIASED, ratio_spread=3.0), growth=2.0**-16)
        diagnosis = diagnose(measurements(*self.rows(*[normalising] * 4), probes=("pass_through",)))
        assert diagnosis.verdict == "healthy"
        assert "pass-through does not apply" in diagnosis.notes[0]

    def test_where_it_was_not_asked_for_nothing_is_said(self):
        assert diagnose(measurements(*self.rows(*[None] * 4))).notes == ()


class TestKurtosisEdges:
    def edges(self, *kurtoses):
        return kurtosis_edges(
            [layer(index, shape=shape(kurtosis=k) if k is not None else None) for index, k in enumerate(kurtoses)]
        )

    def test_a_drop_stands_out_at_its_layer(self):
        edges = self.edges(100, 110, 121, 130, 5, 5.5, 6, 6.5)
        assert min(range(8), key=edges.__getitem__) == 4
        assert edges[4] < -6
        assert edges[0] == 0

    def test_few_layers_have_no_statistics(self):
        assert self.edges(3, 4000, 3) == [0, 0, 0]

    def test_unknown_and_extreme_kurtosis_are_no_crash(self):
        edges = self.edges(3, None, 5, math.nan, -3, math.inf, 4, 5, 6, 7)
        assert len(edges) == 10
        assert all(math.isfinite(edge) for edge in edges)


@given(st.floats(0, 1e6))
def test_the_limit_of_ties_lies_above_chance(expected):
    assert tie_limit(expected) > expected + 2
    assert tie_limit(expected) < 40 + 2 * expected


NUMBER = st.floats(allow_nan=True, allow_infinity=True)
COUNT = st.integers(0, 10**6)
TRANSFER = st.builds(Transfer, NUMBER, NUMBER, COUNT, COUNT, *[NUMBER] * 3, st.booleans(), *[NUMBER] * 5)
UNPROBED = st.builds(unmeasured, st.just(0), st.booleans(), st.just(False))
PROBED = st.builds(
    layer,
    stability=st.none() | st.builds(Stability, COUNT, *[NUMBER] * 4),
    gain=st.none() | st.builds(Gain, NUMBER, NUMBER, NUMBER, COUNT),
    shape=st.none() | st.builds(Shape, NUMBER, NUMBER, NUMBER, NUMBER, COUNT, st.floats(0, 1e9), *[COUNT] * 3),
    pass_through=st.none() | st.builds(PassThrough, TRANSFER, NUMBER),
)


@given(st.lists(PROBED | UNPROBED, max_size=5))
def test_whatever_was_measured_gets_a_verdict(rows):
    made = measurements(*[replace(row, index=index) for index, row in enumerate(rows)])
    diagnosis = diagnose(made)
    assert len(diagnosis.labels) == len(diagnosis.scores) == len(rows)
    assert all(0.5 <= finding.confidence <= 1 for finding in diagnosis.findings)
    assert [finding.rank for finding in diagnosis.findings] == list(range(1, len(diagnosis.findings) + 1))
    assert len({finding.layer for finding in diagnosis.findings}) == len(diagnosis.findings)


def test_a_probe_that_is_not_a_number_hides_no_other():
    blind = replace(NOISY, unit=math.nan, element=math.nan)
    row = layer(2, stability=blind, pass_through=passing(BIASED))
    assert [finding.layer for finding in diagnose(healthy_stack(row_2=row)).findings] == [2]


def test_the_diagnosis_never_imports_torch():
    # The package itself imports torch; a bare package in its place shows what the diagnosis needs.
    program = """
import sys, types
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch was imported")
sys.meta_path.insert(0, Blocked())
package = types.ModuleType("srdd")
package.__path__ = [sys.argv[1] + "/srdd"]
sys.modules["srdd"] = package
import srdd.diagnose, srdd.measurements, srdd.suggest
from srdd.measurements import Measurements
print(srdd.diagnose.diagnose(Measurements((), 2.0**-8, "bfloat16", 1, 1, ())).verdict)
"""
    result = subprocess.run([sys.executable, "-c", program, str(ROOT)], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "healthy", result.stderr
