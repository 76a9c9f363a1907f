"""GRPO by TRL's own trainer under a fault and noise; where TRL is installed (`make test-trl`)."""

from __future__ import annotations

import json

import pytest

from aqn.training.arms import Fault
from aqn.training.execute import run_study
from aqn.training.recipe import Recipe
from aqn.training.study import Study
from hal.bundled import model_dir
from hal.registry import get_backend

pytest.importorskip("trl")

# What TRL and transformers say of themselves.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_rollout_and_actor_carry_noise_and_the_reward_is_logged(tmp_path):
    recipe = Recipe("grpo", steps=2, epochs=1, prompts=2, completions=2, evaluated=2)
    study = Study(model_dir(), Fault(3, 0.6), ("epoch_aware",), 2, 0.05, "matmul", {3: 0.05}, recipe)
    steps = []
    run_study(study, get_backend("cpu-reference"), tmp_path, lambda arm, seed, step: steps.append((seed, step)))
    assert {(0, 1), (0, 2), (1, 1), (1, 2)} <= set(steps)
    record = json.loads((tmp_path / "epoch_aware-seed0.json").read_text())
    assert [values["sigma"] for _, values in record["curve"]] == pytest.approx([0.05, 0.0005])
    assert all(0 <= values["reward"] <= 1 for _, values in record["curve"])
    assert record["hits"] > 0
