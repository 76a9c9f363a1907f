"""Whether losses are in proportion, from plain numbers."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.diagnosis import diagnose

WEIGHTS = {"kv": 1.0, "codi": 0.5, "cka": 0.05, "contrastive": 0.0}


def judged(ce=1.0, kv=0.3, codi=0.2, cka=0.5, **more):
    return diagnose({"ce": [ce], "kv": [kv], "codi": [codi], "cka": [cka], **more}, WEIGHTS)


def test_in_proportion_there_is_nothing_to_change():
    assert judged(kv_weighted=[0.33]).advice == ()


def test_shares_are_of_the_weighted_sum():
    found = judged(ce=1.0, kv=0.3, codi=0.2, cka=2.0)
    assert sum(scale.share for scale in found.scales.values()) == pytest.approx(1)
    assert found.scales["codi"].share == pytest.approx(0.1 / 1.5)


def test_mean_and_spread_over_batches():
    found = diagnose({"ce": [1.0, 2.0, 3.0], "kv": [0.5, 0.5, 0.5]}, WEIGHTS)
    assert (found.scales["ce"].mean, found.scales["ce"].std) == (2.0, 1.0)
    assert found.scales["kv"].std == 0


def test_weighted_keys_and_values_stand_in_the_total_for_plain_ones():
    found = judged(kv=0.3, kv_weighted=[0.36])
    assert found.scales["kv"].share is None
    assert found.scales["kv_weighted"].weight == 1.0
    assert found.attention_effect == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"cka": 10.0}, "CKA: .* above 15%; lower weights.cka"),
        ({"cka": 0.01}, "CKA: .* below 1%; raise weights.cka"),
        ({"kv": 5.0, "cka": 5.0}, "keys and values: .* above 50%; lower weights.kv"),
        ({"kv": 0.01}, "keys and values: .* below 5%; raise weights.kv"),
        ({"kv_weighted": [0.301]}, "less than 5%"),
        ({"kv_weighted": [0.5]}, "more than 30%"),
    ],
)
def test_what_is_out_of_proportion_is_advised_on(losses, words):
    (line,) = judged(**losses).advice
    assert re.search(words, line)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_advised_weight_gives_the_share_it_promises(kv, cka):
    """Not the weight times a ratio of shares, which forgets that the total changes with it."""
    samples = {"ce": [1.0], "kv": [kv], "codi": [0.2], "cka": [cka]}
    for line in diagnose(samples, WEIGHTS).advice:
        name, weight, promised = re.search(r"weights\.(\w+) to (\S+) for (\d+)%", line).groups()
        again = diagnose(samples, {**WEIGHTS, name: float(weight)})
        assert again.scales[name].share == pytest.approx(int(promised) / 100, rel=0.02)


def test_a_loss_without_weight_gets_no_advice():
    found = diagnose({"ce": [1.0], "kv": [0.3], "cka": [9.0]}, {**WEIGHTS, "cka": 0.0})
    assert found.advice == ()
    assert found.scales["cka"].share == 0


def test_where_nothing_else_counts_no_weight_is_promised():
    (line,) = diagnose({"ce": [0.0], "kv": [1.0]}, WEIGHTS).advice
    assert "100.0% of the total" in line
    assert "no weight" in line


def test_it_is_plain_json():
    document = json.loads(json.dumps(judged().to_json(), allow_nan=False))
    assert document["schema"] == "distill-diagnosis/1"
    assert set(document["scales"]) == {"ce", "kv", "codi", "cka"}
