"""A confidence is compared with how often findings of that confidence were right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from srdd.campaign.calibration import calibration
from tests.srdd.campaign.conftest import outcome


def sure(made, confidence):
    return replace(made, findings=tuple(replace(entry, confidence=confidence) for entry in made.findings))


def in_bins(outcomes):
    return {(entry.low, entry.high): (entry.right.count, entry.right.of) for entry in calibration(outcomes)}


def test_each_first_finding_counts_in_the_bin_of_its_confidence():
    made = [
        sure(outcome("a", "bias@3", "3 bias", "2 bias"), 0.6),
        sure(outcome("b", "bias@3", "2 bias", "3 bias"), 0.6),
        sure(outcome("c", "bias@3", "3 scale"), 0.95),
        sure(outcome("d", "bias@3", "3 bias"), 1.0),
    ]
    assert in_bins(made) == {(0.5, 0.75): (1, 2), (0.9, 0.99): (1, 1), (0.999, 1.0): (1, 1)}


@pytest.mark.parametrize("confidence", [0.5, 0.75, 0.9, 0.99, 0.999, 1.0])
def test_no_confidence_falls_between_two_bins_or_into_both(confidence):
    assert sum(of for _, of in in_bins([sure(outcome("a", "bias@3", "3 bias"), confidence)]).values()) == 1


def test_a_finding_where_there_is_no_fault_is_wrong():
    made = [outcome("a", None, "3 bias"), outcome("b", "bias@3", "3 bias", changed=0)]
    assert in_bins(made) == {(0.9, 0.99): (0, 2)}


def test_scans_without_a_finding_say_nothing_of_confidence():
    assert calibration([outcome("a"), outcome("b", "bias@3"), outcome("c", "bias@3", error="died")]) == ()
