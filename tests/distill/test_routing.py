"""Several teachers become one, by shares that sum to 1."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from distill.config import RoutingOptions
from distill.losses.contrastive import pooled
from distill.routing import (
    FixedRouting,
    LearnableRouting,
    SimilarityRouting,
    concentration,
    fuse,
    make_routing,
    summaries,
)
from hal.errors import UsageError


def test_fixed_shares_are_made_to_sum_to_one():
    assert FixedRouting([3, 1])(torch.zeros(2, 4), torch.zeros(2, 2, 4)).tolist() == [[0.75, 0.25]] * 2


def test_the_teacher_most_like_the_student_gets_the_most():
    student = torch.tensor([[1.0, 0.0]])
    teachers = torch.tensor([[[1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]])
    shares = SimilarityRouting(temperature=0.5)(student, teachers)[0]
    assert shares.sum().item() == pytest.approx(1)
    assert shares[0] > shares[1] > shares[2]


def test_a_learnable_gate_begins_with_equal_shares_and_learns():
    routing = LearnableRouting(4, 3)
    student = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    shares = routing(student, torch.zeros(5, 3, 4))
    assert torch.allclose(shares, torch.full((5, 3), 1 / 3))
    shares[:, 0].sum().backward()
    assert routing.gate.weight.grad.any()


def test_concentration_is_zero_for_equal_shares_and_largest_for_one_teacher():
    assert concentration(torch.full((2, 4), 0.25)).item() == pytest.approx(0, abs=1e-6)
    assert concentration(torch.eye(4)).item() == pytest.approx(math.log(4))


def test_a_share_of_one_gives_that_teacher(passes):
    both = [passes["teacher"], passes["other"]]
    fused = fuse(both, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert torch.equal(fused.key_values[2].keys, passes["other"].key_values[2].keys)
    assert torch.equal(fused.hidden[-1], passes["other"].hidden[-1])


def test_every_example_has_its_own_mean_of_the_teachers(passes):
    first, second = passes["teacher"], passes["other"]
    fused = fuse([first, second], torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    values = fused.key_values[0].values
    assert torch.equal(values[0], first.key_values[0].values[0])
    wanted = 0.25 * first.key_values[0].values[1] + 0.75 * second.key_values[0].values[1]
    assert torch.allclose(values[1], wanted)
    assert torch.allclose(fused.attention[0].sum(-1), torch.ones(2, 4, 12), atol=1e-4)


def test_summaries_are_mean_states_of_counted_tokens(passes):
    made = summaries([passes["teacher"], passes["other"]])
    assert made.shape == (2, 2, 64)
    assert torch.allclose(made[1, 0], passes["teacher"].hidden[-1][1, :8].mean(0), atol=1e-5)
    assert torch.allclose(made[:, 1], pooled(passes["other"].hidden[-1], passes["other"].counted))


def test_teachers_of_other_shapes_are_refused(passes):
    with pytest.raises(UsageError, match="of one shape"):
        fuse([passes["teacher"], passes["student"]], torch.full((2, 2), 0.5))
    teacher = passes["teacher"]
    fewer = replace(teacher, attention=tuple(entry[:, :2] for entry in teacher.attention))
    for other in (fewer, replace(teacher, attention=None)):
        with pytest.raises(UsageError, match="of one shape"):
            fuse([teacher, other], torch.full((2, 2), 0.5))


def test_vocabularies_may_be_filled_up_to_other_sizes(passes):
    first, second = passes["teacher"], passes["other"]
    longer = replace(second, logits=torch.zeros(2, 12, 320))
    assert torch.equal(fuse([first, longer], torch.full((2, 2), 0.5)).logits, first.logits)


def test_one_teacher_needs_no_routing_and_weights_must_be_one_each():
    assert make_routing(RoutingOptions(), 8, 1) is None
    with pytest.raises(UsageError, match="holds 3 numbers for 2 teachers"):
        make_routing(RoutingOptions(weights=[1, 1, 1]), 8, 2)
    with pytest.raises(UsageError, match="not be negative"):
        FixedRouting([0, 0])
