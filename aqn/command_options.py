"""Options that the commands share, and how lists in them are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from hal.errors import UsageError
from hal.progress_bar import progress_bar

PROGRAM: Final = "python -m aqn"

Backend = Annotated[str, typer.Option(help="Backend to run on: auto, cpu-reference, cuda, npu, or a plug-in's.")]
Device = Annotated[str | None, typer.Option(help="Device: an index, or for example npu:1.")]
Model = Annotated[Path | None, typer.Option(help="Checkpoint directory; the bundled model if left out.")]
Data = Annotated[Path | None, typer.Option(help="Data for --model: .jsonl or .parquet, text or question and answer.")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
Seeds = Annotated[int, typer.Option(min=2, help="Number of seeds; at least 5 to say anything.")]
Samples = Annotated[int, typer.Option(min=1, help="Texts a seed.")]
Steps = Annotated[int, typer.Option(min=2, help="Training steps of a run.")]
Epochs = Annotated[int, typer.Option(min=1, help="Epochs they are divided into.")]
Prompts = Annotated[int, typer.Option(min=1, help="Prompts a step.")]
Completions = Annotated[int, typer.Option(min=2, help="Completions a prompt (GRPO).")]
Rate = Annotated[float, typer.Option(min=0, help="Learning rate.")]
Evaluated = Annotated[int, typer.Option(min=1, help="Problems in each evaluation.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the result as JSON, page and plot.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


def numbers(text: str, option: str) -> list[float]:
    """Comma-separated numbers."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option} {text}: give numbers separated by commas") from None


def integers(text: str, option: str) -> list[int]:
    """Comma-separated whole numbers."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option} {text}: give whole numbers separated by commas") from None


@contextmanager
def counted(description: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that moves a bar on standard error; a log file gets none."""
    with progress_bar(quiet) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
