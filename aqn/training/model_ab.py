"""`python -m aqn model-ab`: Model A, noise on the faulty layer alone, against Model B, noise on all layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from aqn import command_options as option
from aqn.experiments.output import save
from aqn.experiments.result import Result
from aqn.experiments.tables import show
from aqn.training.arms import BASELINE, LAYER_OUTPUT, Fault
from aqn.training.execute import run_study
from aqn.training.recipe import Recipe
from aqn.training.study import Study
from hal.backend import TorchBackend
from hal.bundled import model_dir
from hal.command_line import this_command
from hal.errors import UsageError
from hal.files import require_folder
from hal.registry import get_backend

MODEL_A: Final = "targeted"
MODEL_B: Final = "epoch_aware"


def compare_models(study: Study, backend: TorchBackend, out: Path, quiet: bool) -> Result:
    """Make the study's runs and compare Model A with Model B in every measure, beside the study's own comparisons."""
    with option.counted("model A and B", quiet) as progress:
        result = run_study(study, backend, out, study.counter(progress))
    result.experiment = "model_ab"
    result.title = f"Model A ({MODEL_A}) and Model B ({MODEL_B}, all layers). {result.title}"
    for measure in dict.fromkeys(cell.measure for cell in result.cells):
        result.compare(measure, [(MODEL_A, MODEL_B)])
    pairs = [entry for entry in result.comparisons if {entry.first, entry.second} == {MODEL_A, MODEL_B}]
    result.statements += [
        f"Model A against Model B, {entry.name.partition(': ')[2]}: {entry.difference:+.4f}, {entry.verdict}"
        for entry in pairs
    ]
    return result


def model_ab_command(
    out: Annotated[Path, typer.Option(help="Folder for runs and results; one that holds runs is gone on with.")],
    method: Annotated[str, typer.Option(help="grpo (needs TRL) or supervised.")] = "grpo",
    layer: Annotated[int, typer.Option(min=0, help="Layer of the dead zone, in rollout and training.")] = 3,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Its threshold.")] = 0.25,
    sigma: Annotated[float, typer.Option(min=0, help="Strength of the noise at the schedule's start.")] = 0.05,
    mode: Annotated[str, typer.Option(help="Noise on matmul, all_ops, or the layer's output.")] = LAYER_OUTPUT,
    steps: option.Steps = 60,
    epochs: option.Epochs = 2,
    prompts: option.Prompts = 8,
    completions: option.Completions = 8,
    rate: option.Rate = 2e-4,
    evaluated: option.Evaluated = 200,
    model: option.Model = None,
    backend: option.Backend = "auto",
    device: option.Device = None,
    dtype: option.Dtype = "float32",
    seeds: option.Seeds = 3,
    quiet: option.Quiet = False,
) -> int:
    """Train both under one dead zone, with a baseline without noise, and put everything into one table: accuracy with
    and without the fault, under further noise and on other kinds of question, survival rate, overhead.
    """
    if method not in ("grpo", "supervised") or mode not in ("matmul", "all_ops", LAYER_OUTPUT):
        raise UsageError(
            f"method '{method}', mode '{mode}': choose grpo or supervised, and matmul, all_ops or {LAYER_OUTPUT}"
        )
    if not threshold or steps % epochs:
        raise UsageError(
            f"threshold {threshold} and {steps} steps in {epochs} epochs: a threshold above 0 makes the fault, and "
            "steps must be a multiple of epochs"
        )
    target = get_backend(backend, device)
    recipe = Recipe(method, steps, epochs, prompts, completions, rate, 5, evaluated)  # type: ignore[arg-type]  # checked
    study = Study(
        model or model_dir(),
        Fault(layer, threshold),
        (BASELINE, MODEL_A, MODEL_B),
        seeds,
        sigma,
        mode,
        {layer: sigma},
        recipe,
        dtype,
    )
    require_folder(out)
    result = compare_models(study, target, out, quiet)
    result.options["command"] = this_command(option.PROGRAM)
    save(result, out)
    if not quiet:
        show(result, Console())
        Console().print(f"written: {out}", highlight=False)
    return 0
