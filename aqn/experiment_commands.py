"""`python -m aqn experiment …`: each experiment is one command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from aqn.command_options import (
    PROGRAM,
    Backend,
    Data,
    Device,
    Dtype,
    Model,
    Out,
    Quiet,
    Samples,
    Seeds,
    counted,
    integers,
    numbers,
)
from aqn.experiments.comparison import run_comparison
from aqn.experiments.gradient_flow import run_gradient_flow
from aqn.experiments.output import save
from aqn.experiments.overhead import run_overhead
from aqn.experiments.plan import Plan
from aqn.experiments.result import Result
from aqn.experiments.subject import Subject, load_subject
from aqn.experiments.systematic import run_systematic
from aqn.experiments.tables import show
from hal.command_line import this_command, wide_console
from hal.errors import UsageError
from hal.files import require_folder
from hal.registry import get_backend

application = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Experiments with seeds, intervals and corrected p-values."
)

Layers = Annotated[str, typer.Option(help="Layers to damage, one at a time, comma-separated.")]
Thresholds = Annotated[str, typer.Option(help="Dead-zone thresholds, comma-separated, mild to severe.")]
Sigma = Annotated[float, typer.Option(min=0, help="Strength of the noise.")]
Kind = Annotated[str, typer.Option(help="What the noise disturbs: operator (all products) or layer (the output).")]
Task = Annotated[str, typer.Option(help="Task of the bundled model: arithmetic or text.")]


def finish(result: Result, out: Path | None, quiet: bool) -> int:
    """Print the result, and save it with the command that made it."""
    if not quiet:
        show(result, wide_console())
    if out is not None:
        require_folder(out)
        result.options["command"] = this_command(PROGRAM)
        for path in save(result, out):
            if not quiet:
                wide_console().print(f"written: {path}", highlight=False)
    return 0


def _run(
    subject: Subject,
    experiment: Callable[..., Result],
    out: Path | None,
    quiet: bool,
    *arguments: Any,
    **named: Any,
) -> int:
    if out is not None:
        require_folder(out)
    with counted(experiment.__name__.removeprefix("run_"), quiet) as progress:
        result = experiment(subject, *arguments, progress=progress, **named)
    return finish(result, out, quiet)


def _subject(
    backend: str, device: str | None, model: Path | None, data: Path | None, dtype: str, task: str = "arithmetic"
) -> Subject:
    if task not in ("arithmetic", "text"):
        raise UsageError(f"task '{task}' is unknown: choose arithmetic or text")
    return load_subject(get_backend(backend, device), model, data, task, dtype)  # type: ignore[arg-type]  # checked above


def _plan(layers: str, thresholds: str, sigma: float, kind: str, samples: int, seeds: int) -> Plan:
    if kind not in ("operator", "layer"):
        raise UsageError(f"kind '{kind}' is unknown: choose operator or layer")
    chosen, limits = tuple(integers(layers, "--layers")), tuple(numbers(thresholds, "--thresholds"))
    if not chosen or not limits:
        raise UsageError("give at least one layer and one threshold")
    return Plan(chosen, limits, sigma, kind, samples, seeds)  # type: ignore[arg-type]  # checked above


@application.command("injection")
def injection_command(
    layers: Layers = "3,7,10",
    thresholds: Thresholds = "0.1,0.2,0.3,0.5",
    sigma: Sigma = 0.01,
    kind: Kind = "operator",
    task: Task = "arithmetic",
    backend: Backend = "auto",
    device: Device = None,
    model: Model = None,
    data: Data = None,
    dtype: Dtype = "float32",
    samples: Samples = 50,
    seeds: Seeds = 8,
    out: Out = None,
    quiet: Quiet = False,
) -> int:
    """Clean, dead zone, and noise everywhere, at the faulty layer, everywhere but there; and the layer left out."""
    plan = _plan(layers, thresholds, sigma, kind, samples, seeds)
    return _run(_subject(backend, device, model, data, dtype, task), run_comparison, out, quiet, plan)


@application.command("gradients")
def gradients_command(
    layer: Annotated[int, typer.Option(help="Layer to damage.")] = 7,
    threshold: Annotated[float, typer.Option(help="Dead-zone threshold.")] = 0.2,
    sigma: Sigma = 0.05,
    kind: Kind = "operator",
    backend: Backend = "auto",
    device: Device = None,
    model: Model = None,
    data: Data = None,
    dtype: Dtype = "float32",
    samples: Samples = 32,
    seeds: Seeds = 5,
    out: Out = None,
    quiet: Quiet = False,
) -> int:
    """Activations and gradients at every layer under a dead zone, with and without noise."""
    plan = _plan(str(layer), str(threshold), sigma, kind, samples, seeds)
    return _run(_subject(backend, device, model, data, dtype), run_gradient_flow, out, quiet, plan)


@application.command("systematic")
def systematic_command(
    bits: Annotated[str, typer.Option(help="Significand bits that products keep, comma-separated.")] = "1,2,3,4",
    sigma: Sigma = 0.05,
    backend: Backend = "auto",
    device: Device = None,
    model: Model = None,
    data: Data = None,
    dtype: Dtype = "float32",
    samples: Samples = 50,
    seeds: Seeds = 8,
    out: Out = None,
    quiet: Quiet = False,
) -> int:
    """Truncation and biased rounding against rounding to nearest, and whether noise hides any of it."""
    kept = integers(bits, "--bits")
    return _run(_subject(backend, device, model, data, dtype), run_systematic, out, quiet, kept, sigma, samples, seeds)


@application.command("overhead")
def overhead_command(
    rows: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens in a sequence.")] = 64,
    backend: Backend = "auto",
    device: Device = None,
    model: Model = None,
    dtype: Dtype = "float32",
    seeds: Annotated[int, typer.Option(min=2, help="Rounds, each measuring every case once.")] = 7,
    out: Out = None,
    quiet: Quiet = False,
) -> int:
    """Time of a training step with and without noise."""
    subject = load_subject(get_backend(backend, device), model, None, "arithmetic", dtype, require_data=False)
    return _run(subject, run_overhead, out, quiet, rows, length, seeds)
