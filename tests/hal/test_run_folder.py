"""A folder holds runs of one setting, and none is made twice."""

from __future__ import annotations

import pytest

from hal.errors import UsageError
from hal.run_folder import claim, made_once

SETTINGS = {"rate": 0.1, "layers": (1, 2), "recipe": {"steps": 3}}


def test_a_folder_is_claimed_again_by_the_same_settings_alone(tmp_path):
    claim(tmp_path, SETTINGS)
    claim(tmp_path, SETTINGS)
    with pytest.raises(UsageError, match=r"other settings \(rate, seed\): choose another --out"):
        claim(tmp_path, {**SETTINGS, "rate": 0.2, "seed": 1})


def test_a_run_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"loss": 0.5}

    assert made_once(tmp_path / "a.json", make) == made_once(tmp_path / "a.json", make) == {"loss": 0.5}
    assert made == [1]


def test_a_run_that_fails_leaves_nothing(tmp_path):
    def fail():
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError):
        made_once(tmp_path / "a.json", fail)
    assert not list(tmp_path.iterdir())
