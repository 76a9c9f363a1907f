"""`python -m srdd verify-fix`."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hal.bundled import model_dir
from hal.errors import UsageError
from hal.files import require_outputs, write_text
from hal.models import LoadedModel, load_model, parse_dtype
from hal.registry import get_backend
from srdd.faults import parse_fault, simulate
from srdd.options import (
    AttentionOption,
    BackendOption,
    DeviceOption,
    InjectOption,
    JsonOption,
    ModelOption,
    PromptsOption,
    QuietOption,
    RemoteCodeOption,
    TokensOption,
    error_console,
    require_acted,
)
from srdd.probes.measure import PROBES
from srdd.prompts import read_prompts
from srdd.scan import require_options
from srdd.verify_fix.outcome import metric_text, outcome_json, outcome_text
from srdd.verify_fix.run import can_generate, place, verify_fix
from srdd.verify_fix.task import ArithmeticTask, Task, read_task

HELPS, DOES_NOT = 0, 1


def verify_fix_command(
    layer: Annotated[int | None, typer.Option(help="The layer to run elsewhere, counted from 0.")] = None,
    site: Annotated[
        str,
        typer.Option(help="A module below the layer, such as mlp.down_proj; without --layer, one outside: lm_head."),
    ] = "",
    operator: Annotated[str, typer.Option(help="One operator inside it, such as softmax.")] = "",
    dtype: Annotated[str, typer.Option(help="The precision to run it in: float32, bfloat16 or float16.")] = "float32",
    host: Annotated[bool, typer.Option("--host", help="Run it on the host instead of the device.")] = False,
    backend: BackendOption = "auto",
    device: DeviceOption = None,
    model: ModelOption = None,
    model_dtype: Annotated[str, typer.Option(help="The model's own precision; auto is the checkpoint's.")] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(help="The task: .jsonl with prompt and answer, or texts (.jsonl, .txt) for their loss."),
    ] = None,
    examples: Annotated[int, typer.Option(help="How many examples of the task to run.", min=1)] = 500,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply to a prompt of --data.", min=1)] = 256,
    batch_size: Annotated[int, typer.Option(help="Examples of --data run at once.", min=1)] = 16,
    attention: AttentionOption = None,
    prompts: PromptsOption = None,
    tokens: TokensOption = None,
    level: Annotated[str, typer.Option(help="Of the scans: quick or full.")] = "full",
    inject: InjectOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
    trust_remote_code: RemoteCodeOption = False,
) -> int:
    """Run a layer, or a part of one, in another precision or on the host; scan and evaluate before and after."""
    target = get_backend(backend, device)
    require_options(level, PROBES)
    parse_dtype(model_dtype)
    faults = [parse_fault(text) for text in inject or []]
    texts = read_prompts(prompts) if prompts else None
    own = ArithmeticTask(examples) if model is None and data is None else None
    wanted: Task = own or read_task(data, examples, max_new_tokens, batch_size)
    require_outputs([json] if json else [])
    loaded = load_model(model or model_dir(), target, model_dtype, trust_remote_code, attention)
    change = place(loaded.model, layer, site, operator, dtype, host)
    task = _applicable(wanted, loaded, data)
    if texts is not None and loaded.tokenizer is None:
        raise UsageError(f"--prompts needs a tokenizer and {loaded.directory} has none: leave --prompts out")
    console = error_console()
    with simulate(loaded.model, faults) as active, console.status("") as status:
        outcome = verify_fix(
            loaded.model,
            loaded.tokenizer,
            target,
            change,
            task,
            prompts=texts,
            level=level,
            checkpoint=loaded.directory,
            tokens=tokens,
            step=status.update if console.is_terminal and not quiet else lambda _: None,
        )
    require_acted(active)
    if json is not None:
        write_text(json, json_module.dumps(outcome_json(outcome), indent=1, allow_nan=False) + "\n")
    text = f"{outcome.verdict}: {metric_text(outcome.metric)}" if quiet else outcome_text(outcome)
    Console(soft_wrap=True).print(text, highlight=False, markup=False)
    return HELPS if outcome.helps else DOES_NOT


def _applicable(task: Task, loaded: LoadedModel, data: Path | None) -> Task | None:
    """The task, or None for a model that has none; raises UsageError where one was asked for."""
    if loaded.tokenizer is not None and can_generate(loaded.model):
        return task
    if data is not None:
        lacking = "has no tokenizer" if loaded.tokenizer is None else "does not generate text"
        raise UsageError(f"--data cannot be run: {loaded.directory} {lacking}; leave --data out to rely on the scans")
    return None
