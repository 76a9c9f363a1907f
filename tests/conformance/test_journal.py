"""An interrupted run goes on where it stopped, and never with results of another run."""

from __future__ import annotations

import json

import pytest

from conformance import cli, runner
from conformance.cases import choose
from conformance.cli import main

PATTERN = "operators/silu/*/odd/normal"
RUN = ["run", "--backend", "cpu-reference", "--cases", PATTERN, "--quiet", "--json"]


class Interrupted(BaseException):
    """Stands for the power going off: nothing of ours catches it."""


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that is cut off after two cases; returns its target."""
    target, finished = tmp_path / "r.json", []

    def stop(backend, case, seeds):
        if len(finished) == 2:
            raise Interrupted
        finished.append(case.name)
        return original(backend, case, seeds)

    original = runner.run_case
    monkeypatch.setattr(runner, "run_case", stop)
    with pytest.raises(Interrupted):
        main([*RUN, str(target)])
    monkeypatch.setattr(runner, "run_case", original)
    return target


def test_nothing_half_written_is_at_the_target(stopped):
    assert not stopped.exists()
    assert len((stopped.parent / "r.json.journal").read_text().splitlines()) == 3


def test_it_goes_on_with_the_rest(stopped, monkeypatch):
    ran = []
    original = runner.run_case
    monkeypatch.setattr(runner, "run_case", lambda *arguments: ran.append(arguments[1].name) or original(*arguments))
    assert main([*RUN, str(stopped)]) == 0
    assert ran == [case.name for case in choose(False, [PATTERN])][2:]
    assert len(json.loads(stopped.read_text())["cases"]) == 3
    assert not (stopped.parent / "r.json.journal").exists()


def test_a_line_cut_off_is_dropped_and_its_case_run_again(stopped):
    written = stopped.parent / "r.json.journal"
    written.write_text(written.read_text()[:-40])
    assert main([*RUN, str(stopped)]) == 0
    assert len(json.loads(stopped.read_text())["cases"]) == 3


def test_a_resumed_run_has_the_results_of_an_uninterrupted_one(stopped, tmp_path):
    main([*RUN, str(stopped)])
    main([*RUN, str(tmp_path / "whole.json")])
    documents = [json.loads(path.read_text()) for path in (stopped, tmp_path / "whole.json")]
    for document in documents:
        for case in document["cases"]:
            del case["seconds"]
    assert documents[0] == documents[1]


@pytest.mark.parametrize("change", [["--seeds", "2"], ["--cases", "deadzone/ties/*"]])
def test_the_journal_of_another_run_is_refused(stopped, capsys, change):
    assert main([*RUN, str(stopped), *change]) == 2
    assert "r.json.journal is of another run" in capsys.readouterr().err


def test_the_journal_of_another_device_is_refused(stopped, capsys, monkeypatch):
    original = cli.describe
    monkeypatch.setattr(cli, "describe", lambda backend: original(backend) | {"device_name": "another"})
    assert main([*RUN, str(stopped)]) == 2
    assert "is of another run" in capsys.readouterr().err


def test_the_journal_of_other_code_is_refused(stopped, capsys, monkeypatch):
    original = cli.files_digest
    monkeypatch.setattr(cli, "files_digest", lambda files: original(files) + "0")
    assert main([*RUN, str(stopped)]) == 2
    assert "is of another run" in capsys.readouterr().err
