"""An untrained model and its tokenizer, made once for the tests of training and measuring."""

from __future__ import annotations

import pytest

from hal.bundled.architecture import build_model
from hal.bundled.arithmetic import problems
from hal.bundled.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    questions = [problem.question for problem in problems("train", 500, seed=0)]
    return build_tokenizer([*questions, *["user", "assistant"] * 200])


@pytest.fixture
def untrained(tokenizer):
    return build_model(tokenizer, seed=0)
