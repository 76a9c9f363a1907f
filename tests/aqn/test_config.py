"""One document, two spellings, and one line for whatever is wrong with it."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aqn import AqnConfig
from aqn.config import MODES, PHASES
from hal.errors import UsageError

BY_HAND = """
deadzone: {enabled: true, layer: 15, threshold: 0.01, sparsity: 1.0}
aqn: {enabled: true, target_layers: [15], sigma: 0.05, schedule: epoch_aware}   # target_layers: "all" = global
"""
BY_GUIDE = """
aqn:
  enabled: true
  layer_specific: true
  base_sigma: 0.05
  layer_sigmas: {0: 0.05, 1: 0.1}
  schedule: global_decay
  high_priority_layers: [1]
srdd_metadata: {num_layers: 2, analysis_date: '2026-11-21'}
"""


def written(tmp_path, text):
    path = tmp_path / "aqn.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_form_written_by_hand(tmp_path):
    config = AqnConfig.from_yaml(written(tmp_path, BY_HAND))
    zone, noise = config.dead_zone, config.noise
    assert (zone.layer, zone.threshold, zone.sparsity, zone.noise, zone.scope) == (15, 0.01, 1.0, "before", "tensor")
    assert (noise.target_layers, noise.sigma, noise.schedule.name) == ([15], 0.05, "epoch_aware")
    assert noise.layers_of(28) == (15,)
    assert noise.chosen_operators == MODES["matmul"]
    assert "validation" not in noise.phases


def test_the_guides_form(tmp_path):
    noise = AqnConfig.from_yaml(written(tmp_path, BY_GUIDE)).noise
    assert noise.layers_of(2) == (0, 1)
    assert (noise.scale(0), noise.scale(1)) == (1.0, 2.0)
    schedule = noise.make_schedule(steps=11, epochs=None, layers=2)
    assert (schedule(0), schedule(10)) == (0.05, pytest.approx(0.0005))


def test_a_schedules_options_stand_beside_its_name(tmp_path):
    text = "aqn: {sigma: 0.2, schedule: {name: linear, steps: 3, end: 0.1}}"
    schedule = AqnConfig.from_yaml(written(tmp_path, text)).noise.make_schedule(None, None, 4)
    assert [schedule(step) for step in range(3)] == pytest.approx([0.2, 0.15, 0.1])


def test_what_is_not_enabled_is_not_there():
    config = AqnConfig.parse({"aqn": {"enabled": False}, "deadzone": {"enabled": False, "layer": 0}})
    assert config.noise is None
    assert config.dead_zone is None


@given(
    sigmas=st.dictionaries(st.integers(0, 40), st.floats(0, 1), min_size=1, max_size=4),
    phases=st.lists(st.sampled_from(PHASES), min_size=1, unique=True),
    sparsity=st.floats(0.01, 1),
)
def test_yaml_keeps_everything(sigmas, phases, sparsity):
    config = AqnConfig.parse(
        {
            "deadzone": {"layer": 3, "sparsity": sparsity, "scope": "token"},
            "aqn": {
                "layer_specific": True,
                "layer_sigmas": sigmas,
                "phases": phases,
                "schedule": {"name": "cosine", "steps": 9},
            },
            "srdd_metadata": {"num_layers": 4},
        }
    )
    assert AqnConfig.parse(yaml.safe_load(config.to_yaml())) == config


def test_a_larger_tree_is_read_by_its_own_sections():
    tree = {"trainer": {"x": 1}, "aqn": {"sigma": 0.1}, "actor_rollout_ref": {}}
    assert AqnConfig.from_hydra(tree).noise.sigma == 0.1
    with pytest.raises(UsageError, match="neither 'aqn' nor 'deadzone'"):
        AqnConfig.from_hydra({"trainer": {}})
    with pytest.raises(UsageError, match="list"):
        AqnConfig.from_hydra([])


def test_an_omegaconf_tree_is_resolved():
    omegaconf = pytest.importorskip("omegaconf")
    tree = omegaconf.OmegaConf.create({"strength": 0.2, "aqn": {"sigma": "${strength}", "target_layers": [1]}})
    assert AqnConfig.from_hydra(tree).noise.sigma == 0.2


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"aqn": {"sigm": 1}}, "unknown key 'aqn.sigm': did you mean 'sigma'?"),
        ({"anq": {}}, "unknown key 'anq': did you mean 'aqn'?"),
        ({"deadzone": {"layer": 1, "treshold": 0.1}}, "did you mean 'threshold'?"),
        ({"deadzone": {"layer": 1, "colour": 0.1}}, "known keys: .*threshold"),
        ({"deadzone": {}}, "deadzone.layer: Field required"),
        ({"deadzone": {"layer": 1, "threshold": 2}}, "deadzone.threshold is 2"),
        ({"aqn": {"sigma": -1}}, "is -1: .*greater than or equal to 0"),
        ({"aqn": {"sigma": float("nan")}}, "finite"),
        ({"aqn": {"sigma": 0.1, "base_sigma": 0.2}}, "same thing"),
        ({"aqn": {"target_layers": "some"}}, "neither 'all' nor a list"),
        ({"aqn": {"target_layers": [-1]}}, "counted from 0"),
        ({"aqn": {"target_layers": []}}, "must not be empty"),
        ({"aqn": {"operators": ["linaer"]}}, "unknown operators linaer"),
        ({"aqn": {"operators": ["linear"], "kind": "layer"}}, "belong to kind 'operator'"),
        ({"aqn": {"phases": ["rolout"]}}, "aqn.phases.0 is 'rolout'"),
        ({"aqn": {"schedule": "cosin"}}, "unknown schedule 'cosin'"),
        ({"aqn": {"layer_specific": True}}, "layer_sigmas is empty"),
        ({"aqn": {"sigma": 0, "layer_sigmas": {1: 0.1}}}, "base_sigma, which is 0"),
        ({"deadzone": {"layer": 1, "noise": "after"}, "aqn": {}}, "needs aqn.kind 'layer'"),
        ({}, "neither 'aqn' nor 'deadzone'"),
        (None, "is a NoneType"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, document, words):
    with pytest.raises(UsageError, match=words) as caught:
        AqnConfig.from_yaml(written(tmp_path, yaml.safe_dump(document)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [("aqn: {", "is not YAML"), ("- 1", "is a list")])
def test_a_file_that_is_no_document_is_named(tmp_path, text, words):
    with pytest.raises(UsageError, match=words):
        AqnConfig.from_yaml(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*none\.yaml"):
        AqnConfig.from_yaml(tmp_path / "none.yaml")
