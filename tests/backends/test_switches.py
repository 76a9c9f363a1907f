from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from backends.switches import Switch, attribute, environment, pinned, report


class OneSettingTwoNames:
    """Writing the older name overwrites the newer one, as torch's TF32 settings do."""

    def __init__(self):
        self.newer = "none"

    @property
    def older(self):
        if self.newer not in ("none", "exact"):
            raise RuntimeError("the two names disagree")
        return self.newer == "exact"

    @older.setter
    def older(self, value):
        self.newer = "exact" if value else "none"


def test_values_are_pinned_and_restored():
    owner = SimpleNamespace(fast=True)
    with pinned([(attribute("fast", owner, "fast"), False)]):
        assert owner.fast is False
    assert owner.fast is True


def fail_within(settings):
    with pinned(settings):
        raise ZeroDivisionError


def test_values_are_restored_after_an_exception():
    owner = SimpleNamespace(fast=True)
    with pytest.raises(ZeroDivisionError):
        fail_within([(attribute("fast", owner, "fast"), False)])
    assert owner.fast is True


def test_a_write_that_fails_undoes_the_writes_before_it():
    owner = SimpleNamespace(fast=True)

    def refuse(value):
        if value == "unsuitable":
            raise ValueError(value)

    settings = [(attribute("fast", owner, "fast"), False), (Switch("slow", lambda: "was", refuse), "unsuitable")]
    with pytest.raises(ValueError, match="unsuitable"):
        fail_within(settings)
    assert owner.fast is True


def test_the_newer_of_two_names_wins_on_the_way_back():
    owner = OneSettingTwoNames()
    owner.newer = "custom"
    switches = [attribute("older", owner, "older", unreadable=False), attribute("newer", owner, "newer")]
    with pinned([(switches[0], True), (switches[1], "exact")]):
        assert owner.older is True
    assert owner.newer == "custom"


def test_an_unreadable_attribute_has_its_stand_in():
    owner = OneSettingTwoNames()
    owner.newer = "custom"
    assert attribute("older", owner, "older", unreadable="unknown").read() == "unknown"


@pytest.mark.parametrize("before", [None, "1"])
def test_an_environment_variable_is_restored_or_removed(monkeypatch, before):
    monkeypatch.delenv("SRDD_TEST_SWITCH", raising=False)
    if before is not None:
        monkeypatch.setenv("SRDD_TEST_SWITCH", before)
    with pinned([(environment("SRDD_TEST_SWITCH"), "2")]):
        assert os.environ["SRDD_TEST_SWITCH"] == "2"
    assert os.environ.get("SRDD_TEST_SWITCH") == before


def test_a_report_is_text_and_says_unset(monkeypatch):
    monkeypatch.delenv("SRDD_TEST_SWITCH", raising=False)
    owner = SimpleNamespace(fast=True)
    switches = [attribute("fast", owner, "fast"), environment("SRDD_TEST_SWITCH")]
    assert report(switches) == {"fast": "True", "SRDD_TEST_SWITCH": "unset"}
