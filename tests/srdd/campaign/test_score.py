import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from srdd.campaign.kinds import accepted_kinds
from srdd.campaign.rate import rate
from srdd.campaign.score import judge, score
from tests.srdd.campaign.conftest import outcome


def counts(scored):
    return {name: (entry.count, entry.of) for name, entry in scored.rates.items()}


def test_a_fault_named_first_with_its_kind_is_right_in_everything():
    verdict = judge(outcome("a", "bias@3", "3 bias"))
    assert verdict == dict.fromkeys(verdict, True) | {"operator": None}


@pytest.mark.parametrize(
    ("findings", "right"),
    [
        (["3 bias"], {"detected", "layer", "layer_top3", "layer_alone", "kind", "kind_same_name"}),
        (["3 scale"], {"detected", "layer", "layer_top3", "layer_alone"}),
        (["3 bias", "4 bias"], {"detected", "layer", "layer_top3", "kind", "kind_same_name"}),
        (["2 bias", "3 bias"], {"detected", "layer_top3"}),
        (["1 bias", "1 noise", "2 bias", "3 bias"], {"detected", "layer_top3"}),
        (["0 bias", "1 bias", "2 bias", "3 bias"], {"detected"}),
        (["4 bias"], {"detected"}),
        ([], set()),
    ],
)
def test_what_each_measure_asks_for(findings, right):
    assert {name for name, value in judge(outcome("a", "bias@3", *findings)).items() if value} == right


@pytest.mark.parametrize(
    ("fault", "finding", "right"),
    [
        ("bias@3:site=mlp.down_proj", "3 bias mlp.down_proj", True),
        ("bias@3:site=mlp.down_proj", "3 bias mlp.down_proj linear", True),
        ("bias@3:site=mlp.down_proj", "3 bias mlp", False),
        ("bias@3:site=mlp", "3 bias mlp.down_proj", False),
        ("bias@3:site=mlp.down_proj", "3 bias", False),
        ("bias@3:site=mlp.down_proj", "2 bias mlp.down_proj", False),
        ("bias@3:operator=softmax", "3 bias self_attn softmax", True),
        ("bias@3:operator=softmax", "3 bias self_attn", False),
        ("bias@3:operator=softmax", "3 bias self_attn matmul", False),
        ("bias@3:site=mlp,operator=linear", "3 bias mlp.down_proj linear", True),
        ("bias@3:site=mlp,operator=linear", "3 bias self_attn.q_proj linear", False),
        ("bias@1:operator=linear", "11 bias mlp linear", False),
        ("bit_flip@3:site=mlp.down_proj,parameter=weight", "3 bit_flip mlp.down_proj", True),
        ("bias@3", "3 bias mlp.down_proj", None),
    ],
)
def test_when_module_and_operator_are_right(fault, finding, right):
    assert judge(outcome("a", fault, finding))["operator"] is right


@pytest.mark.parametrize(
    ("findings", "right"),
    [
        (["3 bias /lm_head"], {"detected", "layer", "layer_top3", "layer_alone", "operator", "kind", "kind_same_name"}),
        (["3 bias"], {"detected"}),
        (["3 bias mlp", "3 bias /lm_head"], {"detected", "layer_top3"}),
        (["3 scale /lm_head", "0 bias /model.norm"], {"detected", "layer", "layer_top3", "operator"}),
    ],
)
def test_a_fault_outside_the_layers_is_placed_by_its_module(findings, right):
    assert {name for name, value in judge(outcome("a", "bias@lm_head", *findings)).items() if value} == right


@pytest.mark.parametrize(
    ("fault", "accepted"),
    [
        ("bias@3", {"bias"}),
        ("noise@3", {"noise"}),
        ("bias@3:every=3", {"bias", "noise", "spike", "non_determinism"}),
        ("bias@3:rate=0.5", {"bias", "noise", "spike", "non_determinism"}),
        ("stuck_at@3", {"stuck_at"}),
    ],
)
def test_another_name_is_right_only_where_the_table_of_equivalences_says_so(fault, accepted):
    assert accepted_kinds(outcome("a", fault).fault) == accepted
    for kind in ("bias", "dead_zone", "noise", "scale"):
        verdict = judge(outcome("a", fault, f"3 {kind}"))
        assert verdict["kind"] is (kind in accepted)
        assert verdict["kind_same_name"] is fault.startswith(kind)


def test_a_fault_that_changed_nothing_is_listed_and_not_counted():
    silent = outcome("a", "saturation@3", changed=0)
    scored = score([silent, outcome("b", "bias@3", "3 bias")])
    assert counts(scored)["layer"] == (1, 1)
    assert scored.unchanged == (silent,)
    assert scored.perfect


def test_an_alarm_where_a_fault_changed_nothing_is_no_hit_and_spoils_the_score():
    scored = score([outcome("a", "saturation@3", "3 saturation", changed=0)])
    assert counts(scored)["detected"] == (0, 0)
    assert not scored.perfect


def test_a_case_without_a_scan_is_a_miss_or_a_false_alarm():
    broken = outcome("a", "bias@3:site=mlp", changed=0, error="its process ended by SIGKILL")
    clean = outcome("b", error="RuntimeError: no")
    scored = score([broken, clean])
    assert set(counts(scored).items()) >= {("detected", (0, 1)), ("operator", (0, 1)), ("false_alarms", (1, 1))}
    assert scored.misses == (broken,)
    assert scored.alarms == (clean,)
    assert scored.errors == (broken, clean)
    assert scored.confusion == {"bias": {"(error)": 1}}


def test_clean_controls_count_for_false_alarms_alone():
    scored = score([outcome("a"), outcome("b", None, "2 noise"), outcome("c")])
    assert counts(scored)["false_alarms"] == (1, 3)
    assert counts(scored)["detected"] == (0, 0)
    assert [entry.key for entry in scored.alarms] == ["b"]


def test_the_confusion_table_shows_every_fault_once():
    scored = score(
        [
            outcome("a", "bias@3", "3 bias"),
            outcome("b", "bias@3", "3 scale"),
            outcome("c", "bias@3", "2 bias"),
            outcome("d", "bias@3"),
            outcome("e", "noise@3", "3 noise"),
        ]
    )
    assert scored.confusion == {
        "bias": {"bias": 1, "scale": 1, "(another place)": 1, "(healthy)": 1},
        "noise": {"noise": 1},
    }


def test_groups_split_by_kind_place_extent_and_dtype():
    scored = score(
        [
            outcome("a", "bias@3", "3 bias"),
            outcome("b", "bias@4"),
            outcome("c", "bias@3:units=1", "3 bias"),
            outcome("d", "bias@3:sparsity=0.01", "3 bias"),
            outcome("e", "bias@3", "3 bias", dtype="float32"),
            outcome("f", "bias@3:site=mlp,operator=linear", "3 bias"),
            outcome("g", "bias@3:every=3", "3 bias"),
            outcome("h", "bit_flip@3:site=mlp,parameter=weight,scope=elements,units=2", "3 bias"),
        ]
    )
    assert {(g.kind, g.place, g.extent, g.dtype): g.rates["layer"].of for g in scored.groups} == {
        ("bias", "layer output", "dense", "bfloat16"): 2,
        ("bias", "layer output", "1 unit", "bfloat16"): 1,
        ("bias", "layer output", "1 %", "bfloat16"): 1,
        ("bias", "layer output", "dense", "float32"): 1,
        ("bias", "mlp linear", "dense", "bfloat16"): 1,
        ("bias every=3", "layer output", "dense", "bfloat16"): 1,
        ("bit_flip scope=elements", "mlp weight", "2 units", "bfloat16"): 1,
    }
    assert sum(group.rates["layer"].count for group in scored.groups) == scored.rates["layer"].count


def test_the_order_of_the_outcomes_does_not_matter():
    outcomes = [
        outcome(str(index), f"bias@{index % 4}", *findings)
        for index, findings in enumerate(itertools.product(["0 bias", "2 noise"], ["3 bias", "1 scale"]))
    ]
    shuffled = random.Random(1).sample(outcomes, len(outcomes))  # noqa: S311 -- any other order does
    assert score(shuffled) == score(outcomes)


def test_no_outcome_is_a_score_of_nothing():
    assert counts(score([]))["layer"] == (0, 0)
    assert score([]).rates["layer"].low is None


@given(st.integers(1, 5000).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_the_interval_is_wilsons(case):
    count, of = case
    z, share = norm.ppf(0.975), count / of
    centre = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * (share * (1 - share) / of + z**2 / (4 * of**2)) ** 0.5
    found = rate(count, of)
    assert found.low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert found.high == pytest.approx(min(centre + half, 1), abs=1e-9)


def test_a_clean_control_has_no_fault_to_be_judged_by():
    with pytest.raises(ValueError, match="clean control"):
        judge(outcome("a"))
