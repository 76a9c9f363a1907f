"""A training comparison trains what it says, goes on where it stopped, and never does a run twice."""

from __future__ import annotations

import json

import pytest
import torch

from aqn.config import AqnConfig
from aqn.training.accuracy import FAULTY
from aqn.training.arms import ARMS, BEFORE, Fault, arm_config, require_arms
from aqn.training.comparison import SECONDS
from aqn.training.curve import curves
from aqn.training.data import file_problems
from aqn.training.execute import run_study
from aqn.training.recipe import Recipe, bundled_problems
from aqn.training.study import Study
from hal.bundled import model_dir
from hal.errors import UsageError
from hal.registry import get_backend

torch.set_num_threads(1)
FAULT = Fault(3, 0.5)
RECIPE = Recipe("supervised", steps=4, epochs=2, prompts=2, evaluated=4)
LAYER_SIGMAS = {layer: 0.1 if layer == 3 else 0.05 for layer in range(12)}


def study(arms=("baseline", "epoch_aware"), **changes):
    settings = {"seeds": 2, "sigma": 0.05, "mode": "matmul", "layer_sigmas": LAYER_SIGMAS, "recipe": RECIPE, **changes}
    return Study(model_dir(), FAULT, tuple(arms), **settings)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    steps = []
    result = run_study(study(), get_backend("cpu-reference"), folder, lambda *at: steps.append(at))
    return folder, result, steps


def test_every_arm_and_seed_is_trained_and_measured(done):
    folder, result, steps = done
    assert set(steps) == {
        (arm, seed, step) for arm in ("baseline", "epoch_aware") for seed in (0, 1) for step in range(1, 5)
    }
    assert {cell.condition for cell in result.cells if cell.measure == FAULTY} == {BEFORE, "baseline", "epoch_aware"}
    assert all(value > 0 for cell in result.cells if cell.measure == SECONDS for value in cell.values)
    record = json.loads((folder / "epoch_aware-seed0.json").read_text())
    sigmas = [values["sigma"] for _, values in record["curve"]]
    assert sigmas == pytest.approx([0.05, 0.01, 0.01, 0.0005])
    assert record["hits"] > 0


def test_training_changed_the_loss_and_the_curve_is_there(done):
    folder, _, _ = done
    lines = curves(folder, ["baseline", "epoch_aware"], "loss")
    assert all(steps == [1.0, 2.0, 3.0, 4.0] for steps, _ in lines.values())
    assert lines["baseline"][1] != lines["epoch_aware"][1]


def test_what_is_done_is_not_done_again(done):
    folder, first, _ = done
    steps = []
    again = run_study(study(), get_backend("cpu-reference"), folder, lambda *at: steps.append(at))
    assert steps == []
    assert again.cells == first.cells


def test_a_folder_of_other_settings_is_refused(done):
    folder, _, _ = done
    with pytest.raises(UsageError, match=r"other settings \(sigma\)"):
        run_study(study(sigma=0.2), get_backend("cpu-reference"), folder, lambda *_: None)


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path):
    recipe = Recipe("supervised", steps=12, epochs=2, prompts=2, evaluated=4)
    interrupted = study(["epoch_aware"], recipe=recipe, seeds=2)

    def stop(_arm, _seed, step):
        if step == 11:
            raise KeyboardInterrupt

    backend = get_backend("cpu-reference")
    with pytest.raises(KeyboardInterrupt):
        run_study(interrupted, backend, tmp_path, stop)
    steps = []
    run_study(interrupted, backend, tmp_path, lambda _arm, seed, step: steps.append((seed, step)))
    assert [step for seed, step in steps if seed == 0] == [11, 12]
    record = json.loads((tmp_path / "epoch_aware-seed0.json").read_text())
    assert [step for step, _ in record["curve"]] == list(range(1, 13))
    assert not list(tmp_path.glob("*-seed0/checkpoint-*"))


def test_the_arms_differ_in_noise_and_share_the_fault():
    configs = {arm: arm_config(arm, FAULT, 0.05, "matmul", 1, LAYER_SIGMAS) for arm in ARMS}
    assert all(config.dead_zone.layer == 3 and config.dead_zone.scope == "token" for config in configs.values())
    assert configs["baseline"].noise is None
    assert configs["noise"].noise.schedule.name == "constant"
    assert configs["targeted"].noise.layers_of(12) == (3,)
    assert configs["guided"].noise.scale(3) == 2.0
    assert configs["uniform"].noise.sigma == pytest.approx(sum(LAYER_SIGMAS.values()) / 12)
    assert arm_config("baseline", None, 0.05, "matmul", 1, {}) is None
    assert isinstance(configs["noise"], AqnConfig)


@pytest.mark.parametrize(("arms", "fault"), [(["nois"], FAULT), ([], FAULT), (["guided"], None)])
def test_arms_that_there_are_not_are_refused(arms, fault):
    with pytest.raises(UsageError, match="arms"):
        require_arms(arms, fault)


def test_evaluation_never_sees_what_was_trained():
    drawn = bundled_problems(Recipe(steps=20, prompts=4), 0)
    assert all(problem.split == "train" for problem in drawn.train)
    assert all(problem.split == "held-out" for problem in drawn.held_out + drawn.elsewhere)
    assert not {problem.kind for problem in drawn.train} & {problem.kind for problem in drawn.elsewhere}


def test_files_of_data_are_kept_apart(tmp_path):
    def write(name, numbers):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps({"question": f"{n}+1=", "answer": str(n + 1)}) for n in numbers))
        return path

    train, held_out = write("train.jsonl", range(20)), write("eval.jsonl", range(50, 60))
    drawn = file_problems(train, held_out)(RECIPE, 0)
    assert (len(drawn.train), len(drawn.held_out)) == (4, 4)
    with pytest.raises(UsageError, match="5 questions are in both"):
        file_problems(train, write("both.jsonl", range(15, 25)))
    with pytest.raises(UsageError, match="are needed"):
        file_problems(train, held_out)(Recipe("supervised", steps=100), 0)


def test_grpo_without_trl_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    with pytest.raises(UsageError, match=r"srdd-hal\[trl\]"):
        run_study(study(recipe=Recipe("grpo")), get_backend("cpu-reference"), tmp_path, lambda *_: None)
    assert not list(tmp_path.iterdir())
