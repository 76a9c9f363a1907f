"""The command line: `python -m conformance run | compare | table | list`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import conformance
from conformance import journal, text
from conformance.cases import all_cases, choose
from conformance.compare import compare
from conformance.results import CaseResult, Results, load_results
from conformance.runner import Plan, describe, run_plan
from conformance.standards import DEFAULT, STANDARDS, find_standard
from conformance.table import render_html, render_markdown
from hal.backend import NumericMode, TorchBackend
from hal.command_line import run_command
from hal.errors import UsageError
from hal.files import require_outputs, require_writable, write_text, write_texts
from hal.progress_bar import progress_bar
from hal.provenance import files_digest, source_files
from hal.registry import get_backend

PROGRAM = "python -m conformance"
AGREE, DISAGREE = 0, 1
FULL_SEEDS = 3

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 pass or agree, 1 fail or disagree, 2 wrong usage or input,
    3 backend unavailable.
    """
    return run_command(app, arguments, PROGRAM)


@app.callback(epilog="Exit codes: 0 pass or agree, 1 fail or disagree, 2 wrong usage, 3 backend unavailable.")
def root() -> None:
    """Decide whether accelerators agree: the same cases on each, compared by named standards."""


@app.command("run")
def run_command_line(
    backend: Annotated[
        str, typer.Option(help="Backend to run on: auto, cpu-reference, cuda, npu, or a plug-in's.")
    ] = "auto",
    device: Annotated[str | None, typer.Option(help="Device: an index, or for example npu:1.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The minute's selection, one seed.")] = False,
    cases: Annotated[
        list[str] | None,
        typer.Option(help="Only cases of this name or pattern, e.g. 'operators/gelu/*'; @FILE has one a line."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help=f"Inputs drawn per operator case; {FULL_SEEDS}, with --quick 1.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the results; an interrupted run goes on there.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict line only.")] = False,
) -> int:
    """Run the suite on a backend."""
    target = get_backend(backend, device)
    patterns = _patterns(cases or [])
    plan = Plan(
        cases=choose(quick, patterns),
        everything=all_cases(),
        selection="chosen" if patterns else "quick" if quick else "full",
        seeds=seeds or (1 if quick else FULL_SEEDS),
    )
    results = _run(target, plan, quiet) if json is None else _run_to_file(target, plan, json, quiet)
    text.print_results(results, Console(), quiet)
    return DISAGREE if results.verdict == "fail" else AGREE


@app.command("compare")
def compare_command(
    reference: Annotated[Path, typer.Argument(help="Results of the device that is known, for example a GPU.")],
    candidate: Annotated[Path, typer.Argument(help="Results of the device in question.")],
    standard: Annotated[str, typer.Option(help=f"One of {', '.join(STANDARDS)}.")] = DEFAULT,
    recheck: Annotated[
        list[Path] | None,
        typer.Option(help="Twice, reference first: runs with many seeds of what a dual standard wants rechecked."),
    ] = None,
    recheck_list: Annotated[
        Path | None, typer.Option(help="Write the names of the cases that want a recheck, for run --cases @FILE.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict line only.")] = False,
) -> int:
    """Compare two results files; needs neither device."""
    chosen = find_standard(standard)
    if recheck_list is not None:
        require_writable(recheck_list)
    agreement = compare(load_results(reference), load_results(candidate), chosen, _pair(recheck or []))
    if recheck_list is not None:
        waiting = (case.case for case in agreement.cases if case.outcome == "recheck")
        write_text(recheck_list, "".join(name + "\n" for name in waiting))
    text.print_agreement(agreement, Console(), quiet)
    return AGREE if agreement.agrees else DISAGREE


@app.command("table")
def table_command(
    files: Annotated[list[Path], typer.Argument(help="Results files, one for each backend.")],
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the table as one HTML page.")] = None,
    note: Annotated[str, typer.Option(help="A sentence above the table, for example that a device is simulated.")] = "",
) -> int:
    """Make a table, operator by dtype by backend, from results files."""
    outputs = {path: render for path, render in ((markdown, render_markdown), (html, render_html)) if path is not None}
    require_outputs([path for path in (markdown, html) if path is not None])
    loaded = [load_results(file) for file in files]
    write_texts({path: render(loaded, note) for path, render in outputs.items()})
    if not outputs:
        typer.echo(render_markdown(loaded, note))
    return AGREE


@app.command("list")
def list_command(
    quick: Annotated[bool, typer.Option("--quick", help="Those of the quick run.")] = False,
) -> int:
    """Print the name and purpose of every case."""
    for case in choose(quick):
        typer.echo(f"{case.name}\t{case.purpose}")
    return AGREE


def _run(target: TorchBackend, plan: Plan, quiet: bool) -> Results:
    with progress_bar(quiet) as bar:
        task = bar.add_task("conformance", total=len(plan.cases))
        return run_plan(target, plan, report=lambda result: bar.update(task, advance=1, description=result.family))


def _run_to_file(target: TorchBackend, plan: Plan, path: Path, quiet: bool) -> Results:
    require_writable(path)
    log = journal.Journal(path, _identity(target, plan))
    done = log.read()
    with progress_bar(quiet) as bar, log.writing(done.values()) as file:
        task = bar.add_task("conformance", total=len(plan.cases), completed=len(done))

        def report(result: CaseResult) -> None:
            journal.append(file, result)
            bar.update(task, advance=1, description=result.family)

        results = run_plan(target, plan, done, report)
    results.save(path)
    log.remove()
    return results


def _identity(target: TorchBackend, plan: Plan) -> dict[str, str]:
    """What must be the same for an interrupted run to go on."""
    with target.numeric_mode(NumericMode(deterministic=True)):
        environment = describe(target)
    names = journal.fingerprint(case.name for case in plan.cases)
    code = files_digest(source_files(target, conformance))
    return {"backend": target.name, "cases": names, "seeds": str(plan.seeds), "code": code, **environment}


def _patterns(given: Sequence[str]) -> list[str]:
    patterns: list[str] = []
    for pattern in given:
        if not pattern.startswith("@"):
            patterns.append(pattern)
            continue
        try:
            lines = Path(pattern[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the list of cases {pattern[1:]}: {error}") from error
        patterns += [line.strip() for line in lines if line.strip()]
        if not patterns:
            raise UsageError(f"{pattern[1:]} names no case: give one name or pattern a line")
    return patterns


def _pair(files: Sequence[Path]) -> tuple[Results, Results] | None:
    if not files:
        return None
    if len(files) != 2:
        raise UsageError(f"--recheck was given {len(files)} times: give it twice, the reference's file first")
    return load_results(files[0]), load_results(files[1])
