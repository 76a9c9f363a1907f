"""Every expected failure of a command is one line on standard error and a documented exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer

import hal
from hal.command_line import run_command

app = typer.Typer()


@app.command()
def work(
    number: Annotated[int, typer.Argument()] = 0,
    fail: Annotated[str, typer.Option()] = "",
    file: Annotated[Path | None, typer.Option(exists=True)] = None,
) -> int | None:
    """Do what the test asks for."""
    errors = {
        "usage": hal.UsageError("the value\n   is wrong:  give another"),
        "unavailable": hal.BackendUnavailableError("no driver"),
        "interrupt": KeyboardInterrupt(),
        "abort": typer.Abort(),
        "exit": typer.Exit(7),
        "bug": ZeroDivisionError("a bug"),
    }
    if fail:
        raise errors[fail]
    return number or None


def run(*arguments: str) -> int:
    return run_command(app, arguments, "python -m work")


@pytest.mark.parametrize(
    ("arguments", "code"), [((), 0), (("1",), 1), (("0",), 0), (("--help",), 0), (("--fail", "exit"), 7)]
)
def test_exit_code_is_what_the_command_returns(arguments, code, capsys):
    assert run(*arguments) == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "code", "line"),
    [
        ("usage", 2, "error: the value is wrong: give another\n"),
        ("unavailable", 3, "error: no driver\n"),
        ("interrupt", 130, "error: interrupted\n"),
        ("abort", 130, "error: interrupted\n"),
    ],
)
def test_expected_failure_is_one_line_and_its_own_exit_code(kind, code, line, capsys):
    assert run("--fail", kind) == code
    captured = capsys.readouterr()
    assert captured.err == line
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--nmber", "3"), "--nmber"),
        (("three",), "number"),
        (("1", "2"), "2"),
        (("--fail",), "--fail"),
        (("--file", "/does/not/exist"), "/does/not/exist"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_culprit_and_the_help(arguments, named, capsys):
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert line.endswith("(see `python -m work --help`)")


def test_help_names_the_program(capsys):
    run("--help")
    assert "Usage: python -m work" in capsys.readouterr().out


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("--fail", "bug")
