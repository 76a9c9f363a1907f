"""The bundled model, loaded once, on few texts."""

from __future__ import annotations

import pytest

from aqn.experiments.subject import load_subject
from hal.registry import get_backend


@pytest.fixture(scope="session")
def subject():
    return load_subject(get_backend("cpu-reference"))
