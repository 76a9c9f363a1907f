"""The doctor: `python -m hal`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from hal.command_line import run_command
from hal.doctor import examine
from hal.doctor_text import make_console, print_facts
from hal.registry import default_registry

PROGRAM = "python -m hal"

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Exit code: 0; a backend that cannot run is a finding, not a failure.")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Show every backend: whether it can run here or why not, and what it offers."""
    facts = examine(default_registry())
    if as_json:
        typer.echo(json.dumps(facts.as_json(), indent=2))
    else:
        print_facts(facts, make_console())


def main(arguments: Sequence[str]) -> int:
    """Run the doctor and return its exit code: 0, or 2 for wrong usage."""
    return run_command(app, arguments, PROGRAM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
