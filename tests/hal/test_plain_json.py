"""What JSON does not have becomes null, and nothing else changes."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from hal.plain_json import finite

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_plain_values_stay_as_they_are(value):
    assert finite(value) == value


def test_what_is_not_finite_is_null_however_deep():
    made = finite({"a": (math.nan, [{"b": math.inf}, -math.inf, 1.5])})
    assert made == {"a": [None, [{"b": None}, None, 1.5]]}
    json.dumps(made, allow_nan=False)
