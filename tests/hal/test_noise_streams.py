"""Stream keys: stable, distinct, strict."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hal
from hal.noise import stream_key

PARTS = st.lists(st.one_of(st.integers(), st.text()), min_size=1, max_size=4).map(tuple)


def test_keys_are_frozen():
    assert stream_key("forward", 3, 15, "q_proj") == 0x708C08F01C87DEAE
    assert stream_key(0) == 0xD1A1DE6D4AF84C4C


@given(parts=PARTS, others=PARTS)
def test_different_parts_have_different_keys(parts, others):
    same_kinds = [type(part) for part in parts] == [type(part) for part in others]
    assert (stream_key(*parts) == stream_key(*others)) == (parts == others and same_kinds)


@pytest.mark.parametrize(
    ("parts", "others"),
    [((1,), ("1",)), (("ab", "c"), ("a", "bc")), ((1, 23), (12, 3)), (("a",), ("a", "")), ((-1,), (1,))],
)
def test_kind_and_boundary_of_a_part_count(parts, others):
    assert stream_key(*parts) != stream_key(*others)


def test_key_is_that_of_another_process_with_another_string_hash():
    code = "from hal.noise import stream_key; print(stream_key('layer', 7))"
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "1"}
    )
    assert int(outcome.stdout) == stream_key("layer", 7)


@given(parts=PARTS)
def test_key_fits_the_counter(parts):
    assert 0 <= stream_key(*parts) < 2**64


@pytest.mark.parametrize("part", [1.0, True, None, b"x", ("a",)])
def test_other_kinds_of_part_are_refused(part):
    with pytest.raises(hal.UsageError, match="a part must be an integer or a string"):
        stream_key("a", part)


def test_no_part_is_refused():
    with pytest.raises(hal.UsageError, match="name the stream by at least one"):
        stream_key()
