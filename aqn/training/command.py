"""`python -m aqn train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from aqn import command_options as option
from aqn.config import AqnConfig
from aqn.experiments.output import save
from aqn.experiments.tables import show
from aqn.training.arms import ARMS, Fault
from aqn.training.recipe import Recipe
from hal.bundled import model_dir
from hal.command_line import this_command, wide_console
from hal.errors import UsageError
from hal.files import require_folder, write_text
from hal.registry import get_backend

# What guided training takes where no guide's file is given: the documents' factor for a layer that was found faulty.
_FAULTY_FACTOR = 1.5


def train_command(
    out: Annotated[Path, typer.Option(help="Folder for runs and results; one that holds runs is gone on with.")],
    method: Annotated[str, typer.Option(help="grpo (needs TRL) or supervised.")] = "grpo",
    arms: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(ARMS)}.")] = ",".join(ARMS),
    layer: Annotated[int, typer.Option(min=0, help="Layer of the dead zone.")] = 3,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Its threshold; 0 for no fault.")] = 0.25,
    sigma: Annotated[float, typer.Option(min=0, help="Strength of the noise.")] = 0.05,
    mode: Annotated[str, typer.Option(help="matmul or all_ops.")] = "matmul",
    config: Annotated[Path | None, typer.Option(help="YAML of python -m aqn guide, for the guided arm.")] = None,
    steps: option.Steps = 60,
    epochs: option.Epochs = 2,
    prompts: option.Prompts = 8,
    completions: option.Completions = 8,
    rate: option.Rate = 2e-4,
    evaluated: option.Evaluated = 200,
    model: option.Model = None,
    data: Annotated[Path | None, typer.Option(help="Training questions and answers: .jsonl or .parquet.")] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Held-out questions and answers.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 5,
    backend: option.Backend = "auto",
    device: option.Device = None,
    dtype: option.Dtype = "float32",
    seeds: option.Seeds = 3,
    quiet: option.Quiet = False,
) -> int:
    """Train under a dead zone with and without noise, several seeds each, and compare. Resumable."""
    from aqn.training.curve import curves
    from aqn.training.data import file_problems
    from aqn.training.execute import run_study
    from aqn.training.recipe import bundled_problems
    from aqn.training.study import Study

    if method not in ("grpo", "supervised"):
        raise UsageError(f"method '{method}' is unknown: choose grpo or supervised")
    if mode not in ("matmul", "all_ops"):
        raise UsageError(f"mode '{mode}' is unknown: choose matmul or all_ops")
    if (data is None) != (eval_data is None) or (model is not None and data is None):
        raise UsageError(
            "--model, --data and --eval-data belong together: give all three, or none for the bundled ones"
        )
    if steps % epochs or not steps:
        raise UsageError(f"{steps} steps do not divide into {epochs} epochs: choose a multiple")
    target = get_backend(backend, device)
    recipe = Recipe(method, steps, epochs, prompts, completions, rate, new_tokens, evaluated)  # type: ignore[arg-type]  # checked above
    fault = Fault(layer, threshold) if threshold else None
    chosen = tuple(name for name in arms.split(",") if name)
    study = Study(
        model or model_dir(),
        fault,
        chosen,
        seeds,
        sigma,
        mode,
        _layer_sigmas(config, fault, sigma, model),
        recipe,
        dtype,
    )
    source = bundled_problems if data is None or eval_data is None else file_problems(data, eval_data)
    require_folder(out)
    with option.counted("training", quiet) as progress:
        result = run_study(study, target, out, study.counter(progress), source)
    result.options["command"] = this_command(option.PROGRAM)
    save(result, out)
    lines = curves(out, chosen, "reward" if method == "grpo" else "loss")
    _save_curves(out, lines, "reward" if method == "grpo" else "loss")
    if not quiet:
        show(result, wide_console())
        wide_console().print(f"written: {out}", highlight=False)
    return 0


def _layer_sigmas(config: Path | None, fault: Fault | None, sigma: float, model: Path | None) -> dict[int, float]:
    if config is not None:
        noise = AqnConfig.from_yaml(config).noise
        if noise is None or not noise.layer_sigmas:
            raise UsageError(f"{config} has no layer_sigmas: make it by python -m aqn guide")
        return dict(noise.layer_sigmas)
    layers = json.loads(((model or model_dir()) / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    return {at: sigma * (_FAULTY_FACTOR if fault and at == fault.layer else 1.0) for at in range(layers)}


def _save_curves(out: Path, lines: dict[str, tuple[list[float], list[float]]], value: str) -> None:
    try:
        from aqn.experiments.plot import plot_lines
    except ImportError:  # matplotlib is an extra
        return
    write_text(out / "curves.svg", plot_lines(f"{value}, mean over seeds", "step", value, lines))
