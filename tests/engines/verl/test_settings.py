"""What a run is told, and every way in which that cannot be, each refused in one line."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from aqn.integrations.verl import versions
from aqn.integrations.verl.rollout import SUPPORTED
from aqn.integrations.verl.settings import configuration, document
from aqn.integrations.verl.trainer import AqnSyncTrainer
from hal.errors import EngineError, UsageError


def tree(**entries):
    """A tree as Hydra hands it to verl: struct mode, other keys beside ours."""
    base = {"trainer": {"total_epochs": 2}, "data": {"train_batch_size": 8}}
    config = OmegaConf.create({**base, **entries})
    OmegaConf.set_struct(config, True)
    return config


def test_sections_of_the_tree_are_read_and_interpolations_resolved():
    config = configuration(
        tree(aqn={"sigma": 0.1, "seed": "${data.train_batch_size}"}, deadzone={"layer": 3, "scope": "token"})
    )
    assert config.noise.sigma == 0.1
    assert config.noise.seed == 8
    assert config.dead_zone.layer == 3


def test_a_file_is_read(tmp_path):
    path = tmp_path / "aqn_config.yaml"
    path.write_text(
        "aqn: {base_sigma: 0.05, layer_specific: true, layer_sigmas: {7: 0.1}}\nsrdd_metadata: {num_layers: 12}\n"
    )
    config = configuration(tree(aqn_config=str(path)))
    assert config.noise.layer_sigmas == {7: 0.1}


def test_other_processes_get_what_was_read():
    config = configuration(
        tree(
            aqn={
                "sigma": 0.1,
                "layer_specific": True,
                "layer_sigmas": {7: 0.2},
                "schedule": {"name": "linear", "end": 0.0},
            }
        )
    )
    assert type(config).parse(document(config)) == config


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "without noise or dead zone"),
        ({"aqn": {"sigma": 0.1}, "aqn_config": "a.yaml"}, "aqn_config and aqn are both given"),
        ({"aqn_config": "/nowhere/a.yaml"}, "cannot read /nowhere/a.yaml"),
        ({"aqn": {"sigmma": 0.1}}, "did you mean 'sigma'"),
        ({"aqn": {"sigma": -1}}, r"sigma.* is -1"),
        ({"deadzone": {"layer": 3}}, "write deadzone.scope=token"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(entries, message):
    with pytest.raises(UsageError, match=message) as refused:
        configuration(tree(**entries))
    assert "\n" not in str(refused.value)


class Trainer(AqnSyncTrainer):
    """Asks about the rollout without building the rest."""

    def __init__(self, config, aqn):
        self._aqn = aqn
        self.wanted = self._wants_rollout(config)


def with_rollout(name, eager=True, **aqn):
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"name": name, "enforce_eager": eager}}})
    return Trainer(config, configuration(tree(**aqn))).wanted


@pytest.mark.parametrize("name", SUPPORTED)
def test_rollouts_that_take_noise(name):
    assert with_rollout(name, aqn={"sigma": 0.1})
    assert with_rollout(name, deadzone={"layer": 3, "scope": "token"})


def test_a_rollout_is_left_alone_where_no_phase_asks_for_it():
    assert not with_rollout("sglang", aqn={"sigma": 0.1, "phases": ["actor_forward"]})
    assert not with_rollout("vllm", eager=False, aqn={"sigma": 0.1, "phases": ["actor_forward"]})


def test_a_rollout_that_takes_no_noise_is_refused():
    with pytest.raises(EngineError, match=r"rollout\.name is sglang.* choose one of vllm, transformers"):
        with_rollout("sglang", aqn={"sigma": 0.1})


def test_graphs_are_refused():
    with pytest.raises(EngineError, match=r"set actor_rollout_ref\.rollout\.enforce_eager=True"):
        with_rollout("vllm", eager=False, aqn={"sigma": 0.1})


@pytest.mark.parametrize(
    ("version", "age"), [("0.8.0", "older"), ("0.7.1", "older"), ("0.10.0", "newer"), ("1.0", "newer")]
)
def test_another_verl_is_refused_in_one_line(monkeypatch, version, age):
    monkeypatch.setattr(versions.metadata, "version", lambda _name: version)
    with pytest.raises(EngineError, match=rf"verl {version} is {age} .*install 'verl>=0\.9,<0\.10'") as refused:
        versions.require_version()
    assert "\n" not in str(refused.value)


def test_a_verl_without_the_hook_point_is_refused(monkeypatch):
    monkeypatch.setattr(versions, "_PARTS", (*versions._PARTS, "verl.trainer.ppo.v1.no_such_registry"))
    with pytest.raises(EngineError, match=r"has no verl\.trainer\.ppo\.v1\.no_such_registry"):
        versions.require_version()


def test_a_missing_verl_is_said(monkeypatch):
    def missing(_name):
        raise versions.metadata.PackageNotFoundError

    monkeypatch.setattr(versions.metadata, "version", missing)
    with pytest.raises(EngineError, match="verl is not installed"):
        versions.require_version()
