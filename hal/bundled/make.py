"""Make the bundled model: `python -m hal.bundled.make --out DIR`.

Builds the tokenizer, trains the model from scratch on arithmetic and plain text, stores it in bfloat16, measures
what was stored on held-out data and writes the findings into its model card. The directory appears complete or not
at all. To scan or train with a larger model, give its directory to the commands as `--model DIR`; nothing has to be
made for that.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import torch
import typer
from transformers.utils.logging import disable_progress_bar

from hal.bundled import CARD
from hal.bundled.architecture import build_model
from hal.bundled.arithmetic import stream
from hal.bundled.card import describe, measure
from hal.bundled.text import passages
from hal.bundled.tokenizer import build_tokenizer
from hal.bundled.training import Progress, Recipe, train
from hal.command_line import run_command
from hal.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROGRAM: Final = "python -m hal.bundled.make"
_TOKENIZER_PASSAGES: Final = 700
_TOKENIZER_PROBLEMS: Final = 4000

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def make(
    out: Annotated[Path, typer.Option(help="Directory to create; must not exist yet.")],
    steps: Annotated[int, typer.Option(help="Training steps.")] = Recipe.steps,
    seed: Annotated[int, typer.Option(help="Seed of the weights, the problems and the order of the text.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads torch may use.")] = 1,
    problems: Annotated[int, typer.Option(help="Held-out problems to measure the accuracy on.")] = 2000,
) -> None:
    """Train the bundled model from scratch and store it with its tokenizer and model card."""
    for name, value in (("--steps", steps), ("--threads", threads), ("--problems", problems)):
        if value < 1:
            raise UsageError(f"{name} {value} is too small: give 1 or more")
    if seed < 0:
        raise UsageError(f"--seed {seed} is negative: give 0 or more")
    torch.set_num_threads(threads)
    disable_progress_bar()  # ours says more
    recipe = Recipe(steps=steps, seed=seed)
    with appearing_whole(out) as directory:
        last = _train_into(directory, recipe)
        findings = describe(recipe, threads, last) | measure(directory, problems)
        (directory / CARD).write_text(json.dumps(findings, indent=2) + "\n", encoding="utf-8")
    accuracy = findings["float32"]["accuracy"]
    typer.echo(f"{out}: {accuracy['correct']} of {accuracy['total']} held-out problems right in float32")


@contextmanager
def appearing_whole(out: Path) -> Iterator[Path]:
    """Give a hidden directory beside `out` to write into; it becomes `out` at the end, or is removed after an error."""
    if out.exists():
        raise UsageError(f"--out {out} exists already: remove it or name another directory")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out} has no parent directory: create {out.parent} first")
    try:
        hidden = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise UsageError(f"--out {out} cannot be created ({error.strerror}): name a place you may write to") from error
    try:
        yield hidden
        hidden.chmod(0o755)  # mkdtemp and safetensors write for their owner alone
        for file in hidden.iterdir():
            file.chmod(0o644)
        hidden.rename(out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def learn_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the bundled model, its merges learnt from training passages and problems; always the same."""
    shown = islice(stream("train", 0), _TOKENIZER_PROBLEMS)
    roles = ("user", "assistant")
    lines = [part for problem in shown for part in (problem.question, *roles)]
    return build_tokenizer([*passages("train", _TOKENIZER_PASSAGES), *lines])


def _train_into(directory: Path, recipe: Recipe) -> Progress:
    tokenizer = learn_tokenizer()
    model = build_model(tokenizer, recipe.seed)

    def show(progress: Progress) -> None:
        left = progress.seconds / progress.step * (recipe.steps - progress.step)
        typer.echo(
            f"step {progress.step}/{recipe.steps}  lesson loss {progress.lesson_loss:.3f}  "
            f"text loss {progress.text_loss:.3f}  {progress.seconds:.0f} s, about {left:.0f} s left",
            err=True,
        )

    last = train(model, tokenizer, recipe, show)
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return last


def main(arguments: Sequence[str]) -> int:
    """Make the model and return the exit code: 0, or 2 for wrong usage."""
    return run_command(app, arguments, PROGRAM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
