"""The command line: `python -m srdd [scan]`, and the other verbs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hal.bundled import model_dir
from hal.command_line import run_command
from hal.errors import UsageError
from hal.files import require_outputs
from hal.models import load_model, parse_dtype
from hal.progress_bar import progress_bar
from hal.registry import get_backend
from hal.streaming import stream_model
from srdd.campaign.command import campaign_command
from srdd.diagnose import place
from srdd.faults import parse_fault, simulate
from srdd.fleet.command import fleet_command
from srdd.options import (
    AttentionOption,
    BackendOption,
    DeviceOption,
    InjectOption,
    ModelOption,
    PromptsOption,
    QuietOption,
    RemoteCodeOption,
    TokensOption,
    require_acted,
)
from srdd.probes.measure import PROBES
from srdd.prompts import read_prompts
from srdd.report import Report, load_report
from srdd.report.output import write_report
from srdd.report.text import print_report
from srdd.scan import require_options, require_trials, scan
from srdd.trials import TRIALS
from srdd.verify_fix.command import verify_fix_command

PROGRAM = "python -m srdd"
HEALTHY, FAULTY = 0, 1

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 healthy, 1 fault found, 2 wrong usage or input, 3
    backend unavailable.
    """
    explicit = bool(arguments) and (not arguments[0].startswith("-") or arguments[0] in ("--help", "-h"))
    return run_command(app, arguments if explicit else ["scan", *arguments], PROGRAM)


app.command("campaign")(campaign_command)


@app.callback(epilog="Exit codes: 0 healthy, 1 fault found, 2 wrong usage or input, 3 backend unavailable.")
def root() -> None:
    """Find the faulty layer, operator and kind of fault of a model on this machine. Without a verb: scan."""


@app.command("scan")
def scan_command(
    backend: BackendOption = "auto",
    device: DeviceOption = None,
    model: ModelOption = None,
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")] = "auto",
    attention: AttentionOption = None,
    prompts: PromptsOption = None,
    tokens: TokensOption = None,
    level: Annotated[str, typer.Option(help="quick: probes on the device only; full: with host replay.")] = "full",
    probes: Annotated[str, typer.Option(help="Comma-separated probes.")] = ",".join(PROBES),
    trials: Annotated[
        int, typer.Option(help="Runs of each layer on its own input: more find faults that come and go.")
    ] = TRIALS,
    inject: InjectOption = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Hold one layer at a time, for models larger than memory.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page with plots.")] = None,
    quiet: QuietOption = False,
    trust_remote_code: RemoteCodeOption = False,
) -> int:
    """Scan a model and report which layer is at fault."""
    target = get_backend(backend, device)
    chosen = [name for name in probes.split(",") if name]
    require_options(level, chosen)
    require_trials(trials)
    parse_dtype(dtype)
    faults = [parse_fault(text) for text in inject or []]
    texts = read_prompts(prompts) if prompts else None
    require_outputs([path for path in (json, html) if path])
    load = stream_model if stream else load_model
    loaded = load(model or model_dir(), target, dtype, trust_remote_code, attention)
    if texts is not None and loaded.tokenizer is None:
        raise UsageError(f"--prompts needs a tokenizer and {loaded.directory} has none: leave --prompts out")
    with simulate(loaded.model, faults) as active, progress_bar(quiet) as progress:
        task = progress.add_task("scanning layers", total=None)
        report = scan(
            loaded.model,
            loaded.tokenizer,
            target,
            texts,
            level,
            chosen,
            checkpoint=loaded.directory,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            trials=trials,
            tokens=tokens,
        )
    require_acted(active)
    write_report(report, json, html)
    return _show(report, quiet)


@app.command("report")
def report_command(
    file: Annotated[Path, typer.Argument(help="A report written by --json.")],
    rediagnose: Annotated[
        bool, typer.Option("--rediagnose", help="Judge the measurements by the present rules.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write it as JSON again, as now judged.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one HTML page with plots.")] = None,
    quiet: QuietOption = False,
) -> int:
    """Show a saved report again, without the model."""
    require_outputs([path for path in (json, html) if path])
    report = load_report(file)
    if rediagnose:
        report = report.rediagnosed()
    write_report(report, json, html)
    return _show(report, quiet)


app.command("verify-fix")(verify_fix_command)
app.command("fleet")(fleet_command)


def _show(report: Report, quiet: bool) -> int:
    console = Console()
    if quiet:
        first = report.findings[0] if report.findings else None
        named = f": {place(first, report.measurements.layers)}, {first.site}, {first.kind}" if first else ""
        console.print(f"{report.verdict}{named}", highlight=False)
    else:
        print_report(report, console)
    return FAULTY if report.findings else HEALTHY
