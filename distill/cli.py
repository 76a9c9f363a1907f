"""The command line: `python -m distill diagnose | train`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from distill.config import WARM_UP, DistillConfig
from distill.diagnosis import diagnose
from distill.measure import loss_samples
from distill.students import Models, load_models, require_positions
from distill.text import markdown, show_diagnosis, show_outcome
from distill.training.arms import ARMS, DEFAULT, parse_arms
from distill.training.comparison import Outcome, Plan, compare_arms
from distill.training.data import Data, batches, bundled_data, file_data, padding_token, text_data
from distill.training.trainer import Recipe, rehearse
from hal.bundled import model_dir
from hal.command_line import run_command, this_command, wide_console
from hal.errors import UsageError
from hal.files import require_folder, require_writable, write_text
from hal.progress_bar import progress_bar
from hal.registry import get_backend
from hal.run_folder import claim

PROGRAM = "python -m distill"

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a smaller model by what a larger one makes inside, and see whether the losses are in proportion.",
    epilog="Exit codes: 0 done, 2 wrong usage or input, 3 backend unavailable.",
)

Backend = Annotated[str, typer.Option(help="Backend to run on: auto, cpu-reference, cuda, npu, or a plug-in's.")]
Device = Annotated[str | None, typer.Option(help="Device: an index, or for example npu:1.")]
Teacher = Annotated[
    list[Path] | None, typer.Option(help="Checkpoint directory; may be repeated; the bundled model if left out.")
]
Student = Annotated[
    Path | None, typer.Option(help="Checkpoint directory; left out, a student is cut from the first teacher's layers.")
]
StudentLayers = Annotated[int | None, typer.Option(min=1, help="Layers of a cut student; half of the teacher's.")]
Config = Annotated[Path | None, typer.Option(help="YAML with weights, kv, attention, cka_layers, routing.")]
Rows = Annotated[
    Path | None,
    typer.Option(help="Questions and answers, or text: .jsonl or .parquet; English text for a teacher without it."),
]
Tokens = Annotated[int, typer.Option(min=8, help="Longest example, in tokens.")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that a checkpoint brings along: read it first.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 done, 2 wrong usage or input, 3 backend unavailable."""
    return run_command(app, arguments, PROGRAM)


@app.command("diagnose")
def diagnose_command(
    teacher: Teacher = None,
    student: Student = None,
    student_layers: StudentLayers = None,
    config: Config = None,
    data: Rows = None,
    samples: Annotated[int, typer.Option(min=1, help="Batches that are measured.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Examples a batch.")] = 4,
    max_tokens: Tokens = 128,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the diagnosis as JSON.")] = None,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Which examples are drawn.")] = 0,
    quiet: Quiet = False,
    trust_remote_code: RemoteCode = False,
) -> int:
    """Measure every loss between student and teacher, what it comes to in the total, and advise on weights."""
    if json_file is not None:
        require_writable(json_file)
    chosen = _config(config)
    if chosen.attention.source == "none":
        # Its effect is one of the things to be seen before a training is begun.
        chosen = chosen.model_copy(update={"attention": chosen.attention.model_copy(update={"source": "student"})})
    target = get_backend(backend, device)
    models = load_models(target, teacher or [model_dir()], student, student_layers, dtype, trust_remote_code)
    require_positions(models, max_tokens)
    drawn = _data(models.tokenizer, seed, (teacher, data, None), samples * batch, 0, max_tokens).train
    with progress_bar(quiet) as bar:
        task = bar.add_task("losses", total=math.ceil(len(drawn) / batch))
        given = batches(drawn, batch, padding_token(models.tokenizer), target.device)
        models.student.eval()
        found = diagnose(loss_samples(models, chosen, given, partial(bar.advance, task)), chosen.weights.model_dump())
    if json_file is not None:
        write_text(json_file, json.dumps(found.to_json(), indent=1) + "\n")
    if not quiet:
        names = f"{models.names[0]} learns from {', '.join(models.names[1:])}"
        wide_console().print(f"{names}; {len(drawn)} examples, {batch} a batch", highlight=False)
        show_diagnosis(found, wide_console())
    return 0


@app.command("train")
def train_command(
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs and results; one that holds runs is gone on with.")
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            help="Comma-separated; the first is compared with: baseline, attention, attention-cka, "
            "cross-entropy, shuffled."
        ),
    ] = ",".join(DEFAULT),
    teacher: Teacher = None,
    student: Student = None,
    student_layers: StudentLayers = None,
    config: Config = None,
    data: Rows = None,
    eval_data: Annotated[Path | None, typer.Option(help="Held-out rows; further ones of --data if left out.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of a run.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 16,
    rate: Annotated[float, typer.Option(min=0, max=1, help="Learning rate.")] = 5e-4,
    evaluated: Annotated[int, typer.Option(min=1, help="Held-out examples.")] = 200,
    max_tokens: Tokens = 512,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds; at least 5 to say anything.")] = 3,
    save_students: Annotated[bool, typer.Option("--save-students", help="Keep the last student of each arm.")] = False,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "float32",
    quiet: Quiet = False,
    trust_remote_code: RemoteCode = False,
) -> int:
    """Train the student with less and with more of the distillation, several seeds each, and compare. Resumable."""
    names, recipe = parse_arms(arms), Recipe(steps, batch, rate)
    chosen = _with_warm_up(_config(config), steps)
    target, rows = get_backend(backend, device), (teacher, data, eval_data)
    teachers = teacher or [model_dir()]
    load = partial(load_models, target, teachers, student, student_layers, dtype, trust_remote_code)

    def draw(tokenizer: Any, seed: int) -> Data:
        return _data(tokenizer, seed, rows, steps * batch, evaluated, max_tokens)

    if out is None and save_students:
        raise UsageError("--save-students needs --out DIR, where they are saved")
    models = load()
    require_positions(models, max_tokens)
    _rehearse(models, Plan(chosen, names, recipe, seeds, Path(), load, draw))
    settings: dict[str, Any] = {"models": models.names, "config": chosen.model_dump(), "recipe": asdict(recipe)}
    settings |= {"dtype": dtype, "evaluated": evaluated, "max_tokens": max_tokens, "student_layers": student_layers}
    settings |= {"teachers": _resolved(*teachers), "student": _resolved(student), "data": _resolved(data, eval_data)}
    del models
    with nullcontext(out) if out is not None else TemporaryDirectory() as given:
        folder = Path(given)
        require_folder(folder)
        claim(folder, settings)
        outcome = _compare(Plan(chosen, names, recipe, seeds, folder, load, draw, save_students), quiet)
    settings |= {"command": this_command(PROGRAM), "seeds": seeds}
    if out is not None:
        write_text(out / "result.json", json.dumps(outcome.to_json(settings), indent=1, ensure_ascii=False) + "\n")
        write_text(out / "result.md", markdown(outcome, this_command(PROGRAM)))
    if not quiet:
        show_outcome(outcome, wide_console())
        if out is not None:
            wide_console().print(f"written: {out}", highlight=False)
    return 0


def _rehearse(models: Models, plan: Plan) -> None:
    """Whatever is wrong with models, configuration and data is said before a folder is made."""
    data = plan.data(models.tokenizer, 0)
    for arm in plan.arms:
        rehearse(models, ARMS[arm](plan.config), data, plan.recipe)


def _resolved(*paths: Path | None) -> list[str]:
    """The same from wherever it is asked."""
    return [str(path.resolve()) for path in paths if path is not None]


def _compare(plan: Plan, quiet: bool) -> Outcome:
    """Train and compare under a progress bar."""
    with progress_bar(quiet) as bar, _visible_log(bar.console, quiet):
        task = bar.add_task("training", total=plan.seeds * len(plan.arms) * plan.recipe.steps)

        def progress(arm: str, seed: int, _step: int) -> None:
            bar.update(task, advance=1, description=f"{arm}, seed {seed}")

        return compare_arms(plan, progress)


def _config(path: Path | None) -> DistillConfig:
    return DistillConfig() if path is None else DistillConfig.from_yaml(path)


def _with_warm_up(config: DistillConfig, steps: int) -> DistillConfig:
    """With the warm-up that was asked for, or the usual one, at most a quarter of a short run."""
    if config.attention.warm_up_steps is not None:
        return config
    source = "student" if config.attention.source == "none" else config.attention.source
    attention = config.attention.model_copy(update={"warm_up_steps": min(WARM_UP[source], steps // 4)})
    return config.model_copy(update={"attention": attention})


def _data(
    tokenizer: Any,
    seed: int,
    given: tuple[list[Path] | None, Path | None, Path | None],
    train: int,
    held_out: int,
    tokens: int,
) -> Data:
    teacher, path, other = given
    if path is not None:
        return file_data(tokenizer, path, other, train, held_out, tokens, seed)
    if other is not None:
        raise UsageError(f"--eval-data {other} without --data: give what is trained on, too")
    if teacher is not None:
        return text_data(tokenizer, train, held_out, tokens, seed)
    return bundled_data(tokenizer, train, held_out, seed)


@contextmanager
def _visible_log(console: Console, quiet: bool) -> Iterator[None]:
    """Show what this package logs above the progress bar."""
    logger, level = logging.getLogger("distill"), "CRITICAL" if quiet else "INFO"
    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False, level=level)
    before = logger.level
    logger.setLevel("INFO")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
