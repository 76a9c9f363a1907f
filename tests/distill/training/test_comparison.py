"""Students learn by each arm, and what is said of them is what was measured."""

from __future__ import annotations

import math

import pytest
import torch

from distill.config import DistillConfig
from distill.students import Models, load_models
from distill.text import markdown, statements
from distill.training.arms import ARMS, parse_arms
from distill.training.comparison import BEFORE, Outcome, Plan, compare_arms
from distill.training.data import bundled_data
from distill.training.held_out import ACCURACY, AGREEMENT, LOSS, held_out
from distill.training.trainer import Recipe, train_student
from hal.bundled import model_dir
from hal.errors import UsageError
from hal.models import load_model
from hal.registry import get_backend
from hal.significance import compare, correct

HOST = get_backend("cpu-reference")


def fresh():
    return load_models(HOST, [model_dir()], None, 6, "float32")


@pytest.fixture(scope="module")
def data():
    return bundled_data(fresh().tokenizer, 160, 40, seed=0)


def test_every_loss_goes_down_and_the_teacher_stays(data):
    models = fresh()
    before = [entry.clone() for entry in models.teachers[0].parameters()]
    noted = []
    config = DistillConfig.parse({"attention": {"source": "student", "warm_up_steps": 5}, "weights": {"cka": 1.0}})
    train_student(models, config, data, Recipe(20, 8, 1e-3), 0, lambda step, losses: noted.append((step, losses)))
    assert [step for step, _ in noted] == list(range(20))
    first, last = noted[0][1], noted[-1][1]
    assert set(first) == {"total", "ce", "kv", "kv_weighted", "codi", "cka"}
    assert all(last[name] < first[name] for name in first)
    assert all(torch.equal(*pair) for pair in zip(before, models.teachers[0].parameters(), strict=True))


def test_a_run_is_repeated_to_the_bit(data):
    ends = []
    for _ in range(2):
        models = fresh()
        train_student(models, DistillConfig(), data, Recipe(3, 8, 1e-3), 4, lambda _step, _losses: None)
        ends.append([entry.detach().clone() for entry in models.student.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def test_a_teacher_agrees_with_itself_and_is_right(data):
    teacher = load_model(model_dir(), HOST, "float32")
    models = Models(teacher.model, (teacher.model,), teacher.tokenizer, ("itself", "itself"))
    found = held_out(models, data, 16)
    assert found[AGREEMENT] == 1
    assert found[ACCURACY] > 0.8
    assert found[LOSS] < 0.2


def test_arms_are_compared_with_the_first_and_the_last_student_is_kept(tmp_path):
    plan = Plan(
        DistillConfig(),
        ("baseline", "attention"),
        Recipe(4, 4, 1e-3),
        2,
        tmp_path,
        fresh,
        lambda tokenizer, seed: bundled_data(tokenizer, 16, 10, seed),
        save_students=True,
    )
    told = []
    outcome = compare_arms(plan, lambda arm, seed, step: told.append((arm, seed, step)))
    assert told[-1] == ("attention", 1, 4)
    assert len(told) == 16
    assert set(outcome.values) == {BEFORE, "baseline", "attention"}
    assert all(len(values) == 2 for measures in outcome.values.values() for values in measures.values())
    assert outcome.values["baseline"][LOSS][0] < outcome.values[BEFORE][LOSS][0]
    assert len(outcome.losses["attention"]["kv_weighted"]) == 2
    assert "kv_weighted" not in outcome.losses["baseline"]
    pairs = {(entry.first, entry.second) for entry in outcome.comparisons}
    assert pairs == {("attention", "baseline"), ("baseline", BEFORE)}
    assert len(load_model(tmp_path / "attention", HOST).model.model.layers) == 6
    page = markdown(outcome, "python -m distill train")
    assert "| attention | " in page
    assert "comparisons show no difference" in statements(outcome)[-1]
    assert outcome.to_json({})["schema"] == "distill-training/1"
    told.clear()
    assert compare_arms(plan, lambda *step: told.append(step)) == outcome
    assert told == []  # every run was there


def test_each_arm_asks_for_what_its_name_says():
    made = {name: change(DistillConfig()) for name, change in ARMS.items()}
    assert made["baseline"].attention.source == "none"
    assert made["baseline"].weights.cka == 0
    assert made["attention"].attention.source == "student"
    assert made["attention"].weights.cka == 0
    assert made["attention-cka"].weights.cka == 0.05
    assert not any(made["cross-entropy"].weights.model_dump().values())
    assert made["shuffled"].kv.shuffled
    teacher = DistillConfig.parse({"attention": {"source": "teacher"}})
    assert ARMS["attention"](teacher).attention.source == "teacher"


def test_arms_differ_whatever_the_configuration_says():
    for document in ({"weights": {"cka": 0}}, {"kv": {"shuffled": True}}, {"attention": {"source": "teacher"}}):
        made = [change(DistillConfig.parse(document)) for change in ARMS.values()]
        assert all(one != other for at, one in enumerate(made) for other in made[:at])
        assert [entry.kv.shuffled for entry in made] == [name == "shuffled" for name in ARMS]


def test_the_p_that_decided_is_printed():
    pairs = ("a", [0.125, 0.25, 0.375]), ("b", [0.625, 0.75, 0.875])  # seed by seed the same difference: no paired test
    (found,) = correct([compare("accuracy", *pairs)])
    assert math.isnan(found.p_paired_corrected)
    lines = statements(Outcome(("a", "b"), comparisons=[found]))
    assert lines[0] == f"accuracy: a lower than b by 0.500 (p {found.p_corrected:.2g})"


def test_unknown_arms_are_refused():
    assert parse_arms("baseline, shuffled") == ("baseline", "shuffled")
    for text in ("", "baseline,kd"):
        with pytest.raises(UsageError, match="choose one or more of baseline"):
            parse_arms(text)


def test_one_seed_is_shown_and_compared_with_nothing():
    outcome = Outcome(("baseline",), {BEFORE: {LOSS: [2.0]}, "baseline": {LOSS: [1.0]}})
    assert statements(outcome) == []
    assert "| baseline | 1.0000 |" in markdown(outcome, "")
