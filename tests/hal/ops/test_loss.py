"""Cross-entropy by its definition, and targets that are refused."""

from __future__ import annotations

import math

import pytest
import torch

from hal.errors import UsageError
from hal.ops.loss import IGNORED, cross_entropy


def test_loss_of_even_logits_is_the_logarithm_of_the_vocabulary():
    losses = cross_entropy(torch.zeros(3, 7, dtype=torch.bfloat16), torch.tensor([0, 6, IGNORED]))
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx([math.log(7), math.log(7), 0.0])


def test_an_ignored_token_passes_no_gradient():
    logits = torch.randn(2, 5, requires_grad=True)
    cross_entropy(logits, torch.tensor([IGNORED, 3])).sum().backward()
    assert logits.grad[0].tolist() == [0.0] * 5
    assert logits.grad[1].tolist() != [0.0] * 5


@pytest.mark.parametrize("target", [7, -1, 1 << 40])
def test_a_target_out_of_range_is_refused_with_its_value(target):
    with pytest.raises(UsageError, match=f"target {target} is outside the vocabulary of 7: give 0 to 6, or -100"):
        cross_entropy(torch.zeros(2, 7), torch.tensor([3, target]))
