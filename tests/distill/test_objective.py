"""All losses together: what counts, what is learnt beside the student, and what no gradient reaches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distill.config import DistillConfig
from distill.forward_pass import run_pass
from distill.losses.codi import codi_loss
from distill.losses.contrastive import contrastive_loss, pooled
from distill.losses.kv_loss import kv_loss
from distill.losses.negative_control import shuffled
from distill.objective import Objective
from hal.errors import UsageError
from tests.conftest import random_model


def config(**document):
    return DistillConfig.parse(document)


def losses(student, teachers, labels, step=None, **document):
    objective = Objective(config(**document), student, teachers)
    return objective, objective(student, teachers, labels, step)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(passes, batch):
    same = passes["teacher"]
    _, terms = losses(same, [same], batch["labels"], attention={"source": "teacher"})
    assert terms.kv.item() == terms.kv_weighted.item() == terms.codi.item() == 0
    assert terms.cka.item() == pytest.approx(0, abs=1e-5)
    assert terms.ce > 0


def test_cross_entropy_is_the_models_own(batch):
    model = random_model("qwen2", layers=2)
    with torch.no_grad():
        made = run_pass(model, batch)
        wanted = model(**batch).loss
    _, terms = losses(made, [made], batch["labels"])
    assert terms.ce.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_widths_that_differ_are_projected_and_learnt_with_the_student(batch):
    student, teacher = random_model("qwen2", layers=2, hidden=32), random_model("qwen2", layers=4, hidden=64)
    made = run_pass(student, batch, attention=True)
    with torch.no_grad():
        wanted = run_pass(teacher, batch, attention=True)
    objective, terms = losses(made, [wanted], batch["labels"], attention={"source": "student"})
    objective.total(terms).backward()
    learnt = dict(objective.named_parameters())
    assert {name.partition(".")[0] for name in learnt} == {"key_values", "hidden_projection"}
    assert len([name for name in learnt if name.startswith("key_values")]) == 4  # keys and values of two layers
    assert all(entry.grad.any() for entry in learnt.values())
    assert all(entry.grad is not None for entry in student.parameters())
    assert all(entry.grad is None for entry in teacher.parameters())


def test_an_untrained_projection_keeps_the_size_of_what_it_is_given(passes, batch):
    objective, _ = losses(passes["student"], [passes["teacher"]], batch["labels"])
    states = passes["student"].hidden[-1]
    before, after = states.norm(dim=-1), objective.hidden_projection(states).norm(dim=-1)
    assert torch.allclose(before, after, rtol=1e-4)


def test_the_total_is_the_weighted_sum(passes, batch):
    weights = {"kv": 2.0, "codi": 0.5, "cka": 0.25, "contrastive": 3.0}
    objective, terms = losses(
        passes["student"], [passes["teacher"]], batch["labels"], weights=weights, attention={"source": "teacher"}
    )
    wanted = terms.ce + 2 * terms.kv_weighted + 0.5 * terms.codi + 0.25 * terms.cka + 3 * terms.contrastive
    assert objective.total(terms).item() == pytest.approx(wanted.item())


def test_what_has_no_weight_is_not_computed(passes, batch):
    _, terms = losses(passes["student"], [passes["teacher"]], batch["labels"], weights={"codi": 0, "cka": 0})
    assert set(terms.named()) == {"ce", "kv"}


def test_padding_changes_nothing(passes, batch):
    """The second example alone, without its padding, is worth what it is worth beside the first."""
    document = {"weights": {"cka": 0}, "attention": {"source": "student"}}
    models = random_model("qwen2", layers=2, hidden=32), random_model("qwen2", layers=4, hidden=64)
    objective, together = losses(passes["student"], [passes["teacher"]], batch["labels"], **document)
    found = []
    for rows, length in ((slice(0, 1), 12), (slice(1, 2), 8)):
        part = {name: value[rows, :length] for name, value in batch.items()}
        with torch.no_grad():
            ours, theirs = (run_pass(model, part, attention=True) for model in models)
        found.append(objective(ours, [theirs], part["labels"]))
    for name in ("kv", "kv_weighted", "codi"):
        one, two = (getattr(entry, name).item() for entry in found)
        assert getattr(together, name).item() == pytest.approx((12 * one + 8 * two) / 20, rel=1e-4), name
    one, two = (entry.ce.item() for entry in found)  # the first token of each is not predicted
    assert together.ce.item() == pytest.approx((11 * one + 7 * two) / 18, rel=1e-4)
    assert together.kv_weighted.item() != pytest.approx(together.kv.item(), rel=1e-4)


@pytest.mark.parametrize("source", ["student", "teacher"])
def test_keys_and_values_count_by_the_attention_that_tokens_receive(source, passes, batch):
    student, teacher = passes["teacher"], passes["other"]
    _, terms = losses(student, [teacher], batch["labels"], attention={"source": source})
    looking = student if source == "student" else teacher
    found = []
    for layer, (ours, theirs) in enumerate(zip(student.key_values, teacher.key_values, strict=True)):
        for mine, wanted in zip(ours.tokens, theirs.tokens, strict=True):
            summed = 0.0
            for row, length in enumerate((12, 8)):
                received = looking.attention[layer][row, :, :length, :length].mean(0).sum(0)
                weights = received / received.mean()
                summed += (weights * token_distances(mine[row, :length], wanted[row, :length])).sum().item()
            found.append(summed / 20)
    assert terms.kv_weighted.item() == pytest.approx(sum(found) / len(found), rel=1e-4)


def token_distances(ours, theirs):
    apart = (ours - theirs).abs()
    return torch.where(apart < 1, apart**2 / 2, apart - 0.5).mean(-1)


def test_attention_is_blended_in_by_the_step(passes, batch):
    document = {"attention": {"source": "teacher", "warm_up_steps": 10}}
    objective, full = losses(passes["teacher"], [passes["other"]], batch["labels"], **document)
    first, half, last = (
        objective(passes["teacher"], [passes["other"]], batch["labels"], step).kv_weighted.item() for step in (0, 5, 10)
    )
    assert first == pytest.approx(full.kv.item())
    assert last == pytest.approx(full.kv_weighted.item())
    assert half == pytest.approx((first + last) / 2, rel=1e-4)


LOOKED_AT = [1, 3, 5, 6]


@pytest.mark.parametrize(
    ("method", "kept"),
    [("right_crop", ([8, 9, 10, 11], [4, 5, 6, 7])), ("r_kv", (LOOKED_AT, LOOKED_AT))],
)
def test_a_compressed_teacher_is_compared_with_the_students_last_tokens(method, kept, passes, batch):
    attention = torch.full((2, 4, 12, 12), 0.01)
    attention[..., LOOKED_AT] = 0.2
    student, teacher = passes["teacher"], replace(passes["other"], attention=(attention,) * 4)
    kv = {"compression": method, "length": 4, "balance": 1.0}
    _, cut = losses(student, [teacher], batch["labels"], kv=kv)
    last = [8, 9, 10, 11], [4, 5, 6, 7]
    wanted = [
        kv_loss(at_hand(mine, last), at_hand(other, kept)).item()
        for ours, theirs in zip(student.key_values, teacher.key_values, strict=True)
        for mine, other in zip(ours.tokens, theirs.tokens, strict=True)
    ]
    assert cut.kv.item() == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)


def at_hand(tokens, places):
    return torch.stack([row[chosen] for row, chosen in zip(tokens, places, strict=True)])


def test_the_negative_control_takes_another_examples_keys(passes, batch):
    teacher = passes["teacher"]
    other = shuffled(teacher, torch.Generator().manual_seed(0))
    assert torch.equal(other.key_values[1].keys[0], teacher.key_values[1].keys[1])
    assert torch.equal(other.counted[0], teacher.counted[1])
    _, terms = losses(teacher, [teacher], batch["labels"], kv={"shuffled": True})
    assert terms.kv > 0
    assert terms.codi == 0
    single = run_pass(random_model("qwen2", layers=2), {name: value[:1] for name, value in batch.items()})
    with pytest.raises(UsageError, match="a batch of 1"):
        shuffled(single, torch.Generator())


def test_a_learnable_routing_is_a_parameter_and_is_kept_from_one_teacher(passes, batch):
    both = [passes["teacher"], passes["other"]]
    objective, terms = losses(passes["student"], both, batch["labels"], routing={"kind": "learnable"})
    assert terms.concentration.item() == pytest.approx(0, abs=1e-6)
    objective.total(terms).backward()
    assert objective.routing.gate.weight.grad.any()


def test_contrast_is_small_where_examples_are_told_apart_as_the_teacher_does():
    made = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    assert contrastive_loss(made, made) < 0.1
    assert contrastive_loss(made, made.roll(1, 0)) > 3
    assert contrastive_loss(torch.ones(8, 16), torch.ones(8, 16)).item() == pytest.approx(
        torch.tensor(8.0).log().item(), rel=1e-5
    )
    with pytest.raises(UsageError, match="2 or more"):
        contrastive_loss(made[:1], made[:1])


def test_pooled_states_leave_padding_out():
    hidden = torch.arange(12.0).reshape(1, 4, 3)
    assert pooled(hidden, torch.tensor([[1, 1, 0, 0]])).tolist() == [[1.5, 2.5, 3.5]]


def test_hidden_states_of_other_widths_are_refused():
    with pytest.raises(UsageError, match="project the student's"):
        codi_loss(torch.ones(1, 2, 3), torch.ones(1, 2, 4), torch.ones(1, 2))


def test_no_teacher_is_refused(passes):
    with pytest.raises(UsageError, match="needs a teacher"):
        Objective(config(), passes["student"], [])
