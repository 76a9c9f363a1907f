"""The command line: `python -m aqn guide | experiment | train | robustness | schedule`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from aqn.command_options import PROGRAM, Backend, Device, Dtype, Model, Out, Quiet, Seeds, counted, numbers
from aqn.experiment_commands import application as experiments
from aqn.experiment_commands import finish as experiments_finish
from aqn.guide import advice_for, guide, summary
from aqn.guide_rules import RULES
from aqn.scanning import scan_elsewhere
from aqn.schedule_registry import default_registry, schedule
from aqn.training.command import train_command
from aqn.training.model_ab import model_ab_command
from hal.command_line import run_command, wide_console
from hal.errors import UsageError
from hal.files import require_writable, write_text
from hal.registry import get_backend
from srdd.report import load_report

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Noise that makes a model live with its hardware: choose it, try it, train with it.",
    epilog="Exit codes: 0 done, 2 wrong usage or input, 3 backend unavailable.",
)
app.add_typer(experiments, name="experiment")
app.command("train")(train_command)
app.command("model-ab")(model_ab_command)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 done, 2 wrong usage or input, 3 backend unavailable."""
    return run_command(app, arguments, PROGRAM)


@app.command("guide")
def guide_command(
    report: Annotated[Path | None, typer.Option(help="A report of python -m srdd; scan now if left out.")] = None,
    backend: Backend = "auto",
    device: Device = None,
    model: Model = None,
    dtype: Dtype = "auto",
    level: Annotated[str, typer.Option(help="Level of the scan: quick or full.")] = "quick",
    inject: Annotated[
        list[str] | None, typer.Option(help="Simulate a fault in the scan, KIND@LAYER[:key=value,...].")
    ] = None,
    base_sigma: Annotated[float, typer.Option(help="Noise of an unremarkable layer.")] = 0.05,
    rules: Annotated[str, typer.Option(help=f"One of: {', '.join(RULES)}.")] = "relative",
    schedule: Annotated[str, typer.Option(help="Schedule of the noise over training.")] = "epoch_aware",
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the YAML.")] = Path("aqn_config.yaml"),
    quiet: Quiet = False,
) -> int:
    """Turn a scan into noise for training: a sigma for every layer, as YAML, with a printed summary."""
    require_writable(output)
    if report is not None and inject:
        raise UsageError("--inject belongs to a scan, and --report brings one that was made: give one of them")
    if report is None:
        get_backend(backend, device)  # refuse an unavailable one here, with its own exit code
        found = scan_elsewhere(backend, device, model, dtype, level, inject or [])
    else:
        found = load_report(report)
    config = guide(found, base_sigma, rules, schedule)
    write_text(output, config.to_yaml())
    if not quiet:
        console = wide_console()
        console.print(f"{found.verdict}; noise around {base_sigma} written to {output}", highlight=False)
        for line in summary(advice_for(found, base_sigma, rules), base_sigma):
            console.print(line, highlight=False, soft_wrap=True)
    return 0


@app.command("schedule")
def schedule_command(
    name: Annotated[
        str, typer.Argument(help="constant, linear, cosine, global_decay, epoch_aware, zone, a plug-in's.")
    ],
    steps: Annotated[int, typer.Option(help="Number of steps of the run.")] = 116,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="An option of the schedule, KEY=VALUE; may be repeated.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve into this .svg file.")] = None,
) -> int:
    """Show a schedule: sigma at each step."""
    options = {"steps": steps} if "steps" in default_registry().options(name) else {}
    made = schedule(name, **options, **dict(_option(entry) for entry in option or []))
    values = [made(step) for step in range(steps)]
    if plot is not None:
        require_writable(plot)
        from aqn.experiments.plot import plot_lines

        write_text(plot, plot_lines(f"schedule {name}", "step", "sigma", {name: (range(steps), values)}))
    console = wide_console()
    for step in dict.fromkeys([*range(0, steps, max(1, steps // 20)), steps - 1]):
        console.print(f"step {step:>6}  sigma {values[step]:.6f}", highlight=False)
    return 0


@app.command("robustness")
def robustness_command(
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Checkpoint directory; may be repeated; the bundled model if left out.")
    ] = None,
    noise: Annotated[str, typer.Option(help="Noise levels, comma-separated.")] = "0,0.05,0.1",
    n_samples: Annotated[int, typer.Option(help="Questions a seed.")] = 200,
    mode: Annotated[str, typer.Option(help="matmul or all_ops.")] = "matmul",
    data: Annotated[Path | None, typer.Option(help="Questions and answers: .jsonl or .parquet.")] = None,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "float32",
    seeds: Seeds = 5,
    out: Out = None,
    quiet: Quiet = False,
) -> int:
    """Accuracy of checkpoints under noise."""
    from aqn.experiments.robustness import run_robustness
    from aqn.experiments.subject import load_subject

    if mode not in ("matmul", "all_ops"):
        raise UsageError(f"mode '{mode}' is unknown: choose matmul or all_ops")
    levels, target = numbers(noise, "--noise"), get_backend(backend, device)
    paths: list[Path | None] = list(checkpoint) if checkpoint else [None]
    subjects = [load_subject(target, path, data, dtype=dtype) for path in paths]
    with counted("robustness", quiet) as progress:
        result = run_robustness(subjects, levels, n_samples, seeds, mode, progress)  # type: ignore[arg-type]  # checked above
    return experiments_finish(result, out, quiet)


def _option(text: str) -> tuple[str, object]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--option {text} is not KEY=VALUE")
    return key, yaml.safe_load(value)
