"""The figure that says whether rollout and trainer are one policy, with the fault in none, one and both of them."""

from __future__ import annotations

import pytest

import aqn
from aqn.integrations.vllm import inject
from hal.engines.agreement import rollout_probs_diff
from hal.errors import UsageError
from tests.engines.vllm.rollout import PARITY

FAULT = aqn.AqnConfig.parse(
    {"deadzone": {"layer": 7, "threshold": 0.3, "scope": "token"}, "aqn": {"sigma": 0.05, "phases": ["rollout"]}}
)


def test_it_is_rounding_without_the_fault_and_with_it_on_both_sides(engine, trainer, ids):
    assert rollout_probs_diff(engine, trainer, ids).log_probability_max < PARITY
    with inject(engine, FAULT), aqn.inject(trainer, FAULT) as injection, injection.during("rollout"):
        both = rollout_probs_diff(engine, trainer, ids)
    assert both.log_probability_max < PARITY
    assert both.tokens == sum(len(sequence) - 1 for sequence in ids)


def test_it_is_large_where_only_the_rollout_has_the_fault(engine, trainer, ids):
    with inject(engine, FAULT):
        alone = rollout_probs_diff(engine, trainer, ids)
    assert alone.probability_max > 0.1
    assert alone.probability_max >= alone.probability_mean > 0.001


def test_nothing_to_compare_is_refused(engine, trainer):
    with pytest.raises(UsageError, match="no sequence has two tokens"):
        rollout_probs_diff(engine, trainer, [[5], []])
