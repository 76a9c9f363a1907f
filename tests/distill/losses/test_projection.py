"""Untrained projections keep the size of what they are given, and are drawn from a seed."""

from __future__ import annotations

import pytest
import torch

from distill.losses.projection import projection

VECTORS = torch.randn(200, 256, generator=torch.Generator().manual_seed(9))


def seeded(width, wanted, seed=0):
    return projection(width, wanted, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("wanted", "tolerance"), [(64, 0.1), (512, 1e-5)])
def test_sizes_are_kept_both_ways(wanted, tolerance):
    made = seeded(256, wanted)(VECTORS)
    assert (made.norm(dim=-1) / VECTORS.norm(dim=-1)).mean().item() == pytest.approx(1, abs=tolerance)


def test_they_follow_from_the_seed():
    assert torch.equal(seeded(8, 4).weight, seeded(8, 4).weight)
    assert not torch.equal(seeded(8, 4).weight, seeded(8, 4, seed=1).weight)


def test_equal_widths_need_none():
    assert list(projection(8, 8).parameters()) == []
