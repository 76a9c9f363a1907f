"""Run a typer application so that every expected failure is one line and a documented exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console

from hal.errors import HalError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# Root of what the parser raises for wrong usage. Some releases of typer use click for it and some carry their own
# copy of click, whose classes are others: only the way through typer's own name is right for both.
_ParserError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def run_command(application: typer.Typer, arguments: Sequence[str], program: str) -> int:
    """Run `application` on `arguments` and return the exit code: the command's own, 2 for wrong usage, 130
    after an interrupt, or that of the HalError raised. Failures are one line on standard error; anything
    unexpected is a bug and keeps its traceback.
    """
    command = typer.main.get_command(application)
    try:
        result = command.main(args=list(arguments), prog_name=program, standalone_mode=False)
    except HalError as error:
        return _fail(str(error), error.exit_code)
    except _ParserError as error:
        return _fail(f"{error.format_message()} (see `{program} --help`)", 2)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    if result == INTERRUPTED:  # what typer makes of a KeyboardInterrupt, in silence
        return _fail("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def this_command(program: str) -> str:
    """The command that is being run, for the record; `program` is what stands for the file that python was given."""
    return " ".join([program, *sys.argv[1:]])


def wide_console() -> Console:
    """A console for tables: as wide as the terminal, and wide enough for them where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return code
