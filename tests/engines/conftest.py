"""Tests of the real engines, each in an environment of its own (environment.py); where an engine is not installed its
tests are not even collected.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

ENGINES = ("vllm", "verl", "trl")
HERE = Path(__file__).parent

collect_ignore = [engine for engine in ENGINES if find_spec(engine) is None]


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents and item.path.parent != HERE:
            item.add_marker(pytest.mark.engine)
            # Engines warn of what is theirs to mend; ours are errors in every other test.
            item.add_marker(pytest.mark.filterwarnings("default"))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(900))  # the first test of a kind starts its engine
