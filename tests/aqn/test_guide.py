"""From a scan to a strength for every layer, by the documents' rules."""

from __future__ import annotations

import math

import pytest
import yaml

import aqn
import srdd
from aqn.config import AqnConfig
from aqn.guide import advice_for, guide, summary
from aqn.guide_rules import HIGHEST, LOWEST, LayerEvidence, advise
from hal.bundled import model_dir
from hal.errors import UsageError
from hal.models import load_model
from hal.registry import get_backend
from srdd.faults import Fault, simulate


def stack(count=6, **changed):
    """`count` unremarkable layers; `at_3={...}` changes one."""
    plain = {"gain": 1.0, "kurtosis": 100.0, "instability": 0.0}
    return [LayerEvidence(index, **{**plain, **changed.get(f"at_{index}", {})}) for index in range(count)]


def multipliers(layers, base=0.05, rules="relative"):
    return {entry.layer: round(entry.multiplier, 6) for entry in advise(layers, base, rules) if entry.multiplier != 1}


def test_unremarkable_layers_get_the_base():
    assert multipliers(stack()) == {}


@pytest.mark.parametrize(
    ("evidence", "multiplier"),
    [
        ({"gain": 0.79}, 1.5),
        ({"gain": 0.81}, 1.0),
        ({"kurtosis": 121.0}, 1.5),
        ({"kurtosis": 119.0}, 1.0),
        ({"gain": 0.5, "kurtosis": 500.0}, 2.0),
        ({"instability": 0.11}, 0.5),
        ({"instability": 0.11, "gain": 0.1}, 0.5),
        ({"kind": "dead_zone"}, 1.5),
        ({"kind": "noise"}, 0.5),
        ({"gain": math.nan, "kurtosis": math.nan, "instability": math.nan}, 1.0),
    ],
)
def test_the_relative_rules(evidence, multiplier):
    assert multipliers(stack(at_2=evidence)).get(2, 1.0) == multiplier


@pytest.mark.parametrize(
    ("evidence", "multiplier"),
    [
        ({"gain": 0.79}, 1.5),
        ({"kurtosis": 3999.0}, 1.0),
        ({"kurtosis": 4001.0}, 1.5),
        ({"kurtosis": 6000.0}, 1.75),
        ({"kurtosis": 50000.0}, 2.0),
    ],
)
def test_the_absolute_rules(evidence, multiplier):
    assert multipliers(stack(at_2=evidence), rules="absolute").get(2, 1.0) == pytest.approx(multiplier, abs=1e-3)


@pytest.mark.parametrize(("score", "multiplier"), [(0.9, 1.0), (1.1, 1.2), (11.0, 1.5)])
def test_the_tiers_follow_the_scans_score(score, multiplier):
    assert multipliers(stack(at_2={"score": score}), rules="tiers").get(2, 1.0) == multiplier


@pytest.mark.parametrize("base", [0.01, 0.05, 0.14])
def test_every_sigma_stays_in_its_range(base):
    layers = stack(at_1={"gain": 0.1, "kurtosis": 900.0}, at_2={"instability": 9.0})
    assert all(LOWEST <= entry.sigma <= HIGHEST for entry in advise(layers, base))


def test_a_saturation_seen_behind_its_source_raises_the_source():
    layers = stack(at_2={"label": "SAT_SOURCE"}, at_4={"label": "SAT_PROP"}, at_5={"label": "SAT_PROP"})
    assert multipliers(layers) == {2: 1.5}


def test_a_propagated_saturation_without_a_source_raises_nobody():
    assert multipliers(stack(at_4={"label": "SAT_PROP"})) == {}


def test_the_summary_reads_as_engineers_know_it():
    advice = advise(stack(16, at_15={"gain": 0.1, "kurtosis": 999.0}, at_3={"instability": 1.0}), 0.05)
    lines = summary(advice, 0.05)
    assert lines[15].startswith("Layer 15: σ=0.1000 (2.0x) ↑ HIGH")  # noqa: RUF001 -- as printed
    assert "gain 0.1 < 0.8 of the median" in lines[15]
    assert lines[3].startswith("Layer 3: σ=0.0250 (0.5x) ↓ LOW")  # noqa: RUF001 -- as printed
    assert lines[0] == "Layer 0: σ=0.0500 (1.0x)"  # noqa: RUF001 -- as printed


@pytest.fixture(scope="module")
def loaded():
    return load_model(model_dir(), get_backend("cpu-reference"))


@pytest.fixture(scope="module")
def report(loaded):
    """A scan of the bundled model with faults in two layers."""
    faults = [Fault("dead_zone", 3, magnitude=0.3), Fault("saturation", 8, magnitude=0.5)]
    with simulate(loaded.model, faults):
        return srdd.scan(loaded.model, loaded.tokenizer, level="quick")


def test_a_scan_with_faults_at_two_layers_raises_those_two(report):
    config = guide(report)
    sigmas = config.noise.layer_sigmas
    assert sigmas[3] > 0.06
    assert sigmas[8] > 0.06
    assert {3, 8} <= set(config.noise.high_priority_layers)
    assert set(config.noise.high_priority_layers) == {layer for layer, sigma in sigmas.items() if sigma > 0.06}


def test_the_yaml_has_the_documents_form_and_drives_the_noise(report, loaded, tmp_path, ids):
    path = tmp_path / "aqn_config.yaml"
    path.write_text(guide(report, base_sigma=0.04).to_yaml(), encoding="utf-8")
    document = yaml.safe_load(path.read_text())
    assert set(document) == {"aqn", "srdd_metadata"}
    assert set(document["aqn"]) == {
        "enabled",
        "layer_specific",
        "base_sigma",
        "layer_sigmas",
        "schedule",
        "high_priority_layers",
    }
    assert document["srdd_metadata"]["num_layers"] == 12
    assert document["srdd_metadata"]["analysis_date"]
    config = AqnConfig.from_yaml(path)
    with aqn.inject(loaded.model, config, "cpu-reference", steps=20, epochs=2) as injection:
        assert injection.sigmas == pytest.approx(document["aqn"]["layer_sigmas"])
        with injection.during("rollout"):
            loaded.model(ids)
        injection.step = 19
        assert injection.sigmas[3] == pytest.approx(document["aqn"]["layer_sigmas"][3] / 100)
    assert {hit.layer for hit in injection.counts} == set(range(12))


@pytest.mark.parametrize(
    ("options", "words"), [({"base_sigma": 0.5}, "base sigma is 0.5"), ({"rules": "strict"}, "unknown rules 'strict'")]
)
def test_what_no_guide_takes_is_refused(report, options, words):
    with pytest.raises(UsageError, match=words):
        guide(report, **options)


def test_every_layer_of_the_report_is_advised(report):
    assert [entry.layer for entry in advice_for(report, 0.05)] == list(range(12))
