"""The loop trains all that is to be trained, in small enough steps, and says at once when a student is lost."""

from __future__ import annotations

import json
import math

import pytest
import torch

from distill.config import DistillConfig
from distill.objective import Objective
from distill.students import Models
from distill.training import trainer
from distill.training.comparison import Outcome, Plan, compare_arms
from distill.training.data import Data
from distill.training.trainer import LONGEST_STEP, Recipe, rehearse, train_student
from hal.errors import UsageError
from tests.conftest import byte_level_tokenizer, random_model

DRAWN = torch.randint(0, 250, (24, 12), generator=torch.Generator().manual_seed(0)).tolist()
EXAMPLES = [{"input_ids": row, "labels": row} for row in DRAWN]
DATA = Data(EXAMPLES, EXAMPLES[:4])
PLAIN = DistillConfig.parse({"weights": {"cka": 0}})


def silent(_step, _losses):
    """Tell nobody."""


def narrow(dtype=torch.float32):
    """A student whose width is not its teacher's, so that projections are learnt beside it."""
    student = random_model("qwen2", layers=2, hidden=32, dtype=dtype)
    teacher = random_model("qwen2", layers=4, hidden=64, dtype=dtype).requires_grad_(False)
    return Models(student, (teacher,), byte_level_tokenizer(), ("student", "teacher"))


def gradients(steps, monkeypatch):
    """Of all that is trained, after so many steps that change nothing on one batch."""
    made, models = [], narrow()
    monkeypatch.setattr(trainer, "Objective", lambda *given: made.append(Objective(*given)) or made[-1])
    train_student(models, PLAIN, Data(EXAMPLES[:4], []), Recipe(steps, 4, 0.0), 0, silent)
    return [entry.grad for entry in (*models.student.parameters(), *made[0].parameters())]


def test_gradients_are_those_of_one_step_the_projections_too(monkeypatch):
    once, often = (gradients(steps, monkeypatch) for steps in (1, 3))
    assert len(once) > 10
    assert all(torch.allclose(*pair, rtol=1e-3, atol=1e-6) for pair in zip(once, often, strict=True))


def test_no_step_is_longer_than_allowed_and_all_that_is_trained_is_shortened_together(monkeypatch):
    found = gradients(1, monkeypatch)
    assert torch.cat([entry.flatten() for entry in found]).norm().item() == pytest.approx(LONGEST_STEP, rel=1e-3)


def test_every_epoch_has_another_order_and_leaves_out_what_fills_no_batch():
    rows = [{"input_ids": [at], "labels": [at]} for at in range(7)]
    shown = trainer._in_random_order(rows, 3, 0)
    epochs = [[row["input_ids"][0] for _ in range(2) for row in next(shown)] for _ in range(3)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(next(trainer._in_random_order(rows, 10, 0))) == 7
    assert next(trainer._in_random_order(rows, 7, 0)) != next(trainer._in_random_order(rows, 7, 1))


def seeded_losses(seed):
    noted = []
    torch.randn(3)  # of whoever calls
    recipe = Recipe(2, 4)
    train_student(narrow(), PLAIN, Data(EXAMPLES[:4], []), recipe, seed, lambda _, losses: noted.append(losses))
    return noted


def test_what_is_random_follows_from_the_seed():
    first, again, other = (seeded_losses(seed) for seed in (1, 1, 2))
    assert first == again
    assert first[0]["codi"] != pytest.approx(other[0]["codi"], rel=1e-4)  # other projections


def test_bfloat16_is_trained_and_float16_refused():
    noted = []
    train_student(narrow(torch.bfloat16), PLAIN, DATA, Recipe(8, 4, 3e-3), 0, lambda _, losses: noted.append(losses))
    assert noted[-1]["total"] < noted[0]["total"]
    for train in (
        lambda: train_student(narrow(torch.float16), PLAIN, DATA, Recipe(1, 4), 0, silent),
        lambda: rehearse(narrow(torch.float16), PLAIN, DATA, Recipe(1, 4)),
    ):
        with pytest.raises(UsageError, match=r"float16 cannot be trained.*use --dtype float32 or bfloat16"):
            train()


@pytest.mark.parametrize("arm", ["baseline", "attention"])
def test_a_student_that_is_lost_ends_the_training_and_leaves_no_record(arm, tmp_path):
    plan = Plan(PLAIN, (arm,), Recipe(30, 4, 1e30), 1, tmp_path, narrow, lambda _tokenizer, _seed: DATA)
    with pytest.raises(UsageError, match=rf"^{arm}, seed 0, step \d+: the loss 'ce' is nan, not finite: lower --rate"):
        compare_arms(plan, lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["untrained-seed0.json"]


def test_a_student_that_is_lost_in_the_last_step_is_not_written_down(tmp_path):
    plan = Plan(PLAIN, ("baseline",), Recipe(1, 4, 1e30), 1, tmp_path, narrow, lambda _tokenizer, _seed: DATA)
    with pytest.raises(UsageError, match="held-out data: the loss 'loss' is nan"):
        compare_arms(plan, lambda *_: None)


def test_an_outcome_is_json_whatever_was_measured():
    outcome = Outcome(("a",), {"a": {"loss": [math.nan]}}, {"a": {"ce": [(1.0, math.inf)]}})
    document = json.loads(json.dumps(outcome.to_json({}), allow_nan=False))
    assert document["values"] == {"a": {"loss": [None]}}
    assert document["losses"] == {"a": {"ce": [[1.0, None]]}}


def test_batches_too_small_for_cka_are_said_before_and_too_small_ones_among_others_go_by():
    config = DistillConfig.parse({"weights": {"cka": 1}})
    short = [{"input_ids": row[:3], "labels": row[:3]} for row in DRAWN[:4]]
    with pytest.raises(UsageError, match="CKA of 3 tokens, in the longest batch, needs 4"):
        rehearse(narrow(), config, Data(short, []), Recipe(1, 1))
    noted = []
    train_student(narrow(), config, Data(short, []), Recipe(2, 1), 0, lambda _, losses: noted.append(losses["cka"]))
    assert noted == [0, 0]


def test_a_rehearsal_says_what_a_training_would():
    config = DistillConfig.parse({"weights": {"contrastive": 1}})
    with pytest.raises(UsageError, match="2 or more examples"):
        rehearse(narrow(), config, DATA, Recipe(1, 1))
    rehearse(narrow(), config, DATA, Recipe(1, 2))
