"""The catalogue of cases is what the contract says."""

from __future__ import annotations

import re

import pytest
import torch

from conformance.cases import all_cases, choose
from conformance.evidence import digest_arguments
from hal.errors import UsageError
from hal.ops import CATALOGUE, VALUES, SampleSpec


def test_names_are_paths_and_different():
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(/[a-z0-9_-]+)+", name) for name in names), names


def test_every_operator_has_every_range_of_values_in_every_dtype_and_size():
    names = {case.name for case in all_cases()}
    complete = 0
    for op in CATALOGUE.values():
        wanted = {
            f"operators/{op.name}/{str(dtype).removeprefix('torch.')}/{size}/{values}"
            for dtype in op.dtypes
            for size in ("tiny", "odd", "large")
            for values in VALUES
        }
        complete += wanted <= names
    assert complete >= 0.95 * len(CATALOGUE)


def test_a_full_run_has_the_inputs_that_level_l0_asks_for():
    seeded = sum(case.seeded for case in all_cases())
    assert 3 * seeded >= 5000


def test_the_quick_run_has_every_family():
    assert {case.family for case in choose(quick=True)} == {case.family for case in all_cases()}


def test_every_case_says_what_must_hold():
    assert all(case.purpose and not case.purpose.endswith(".") for case in all_cases())


@pytest.mark.parametrize("name", ["gelu", "attention", "matmul"])
def test_inputs_are_the_same_bits_on_every_machine(name):
    # Made once on x86-64; a change of sampler or noise has to be made on purpose, with a new schema of results.
    known = {
        "gelu": "c2d34e8f407ab1d4028022c8",
        "attention": "0dc089307e1392551dc2cf23",
        "matmul": "5b916fe67dd8eedfd5756ebc",
    }
    digest = digest_arguments(CATALOGUE[name].sample(SampleSpec(torch.bfloat16, "odd", "normal", 0)))
    assert digest == known[name]


def test_a_pattern_chooses_and_one_that_matches_nothing_is_refused():
    assert [case.name for case in choose(False, ["sweeps/exp/*"])] == ["sweeps/exp/float16", "sweeps/exp/bfloat16"]
    with pytest.raises(UsageError, match="no case is named 'sweeps/expo/\\*'"):
        choose(False, ["sweeps/exp/*", "sweeps/expo/*"])
