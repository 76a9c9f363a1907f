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


@pytest.mark.parametrize("text", ['{"loss": ', "[1]", "", "\udcff"])
def test_a_damaged_file_is_named(text, tmp_path):
    for name, use in (
        ("study.json", lambda: claim(tmp_path, SETTINGS)),
        ("a.json", lambda: made_once(tmp_path / "a.json", dict)),
    ):
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UsageError, match=rf"{name} is damaged .*: remove it"):
            use()


def test_a_run_is_made_again_when_what_belongs_to_it_is_missing(tmp_path):
    made = []
    beside = [tmp_path / "student.bin"]
    for _ in range(2):
        made_once(tmp_path / "a.json", lambda: {"made": made.append(1)}, beside)
    beside[0].touch()
    made_once(tmp_path / "a.json", lambda: {"made": made.append(1)}, beside)
    assert len(made) == 2
