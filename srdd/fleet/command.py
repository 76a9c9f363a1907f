"""`python -m srdd fleet`."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hal.errors import UsageError
from hal.files import require_outputs, write_text
from hal.models import parse_dtype
from srdd.fleet.announce import judgement_json, judgement_text, verdict_line
from srdd.fleet.answer import Answer
from srdd.fleet.meeting import meeting
from srdd.fleet.member import Member, require_member
from srdd.fleet.run import run_fleet
from srdd.fleet.vote import Judgement
from srdd.options import (
    BackendOption,
    InjectOption,
    JsonOption,
    ModelOption,
    PromptsOption,
    QuietOption,
    RemoteCodeOption,
)
from srdd.prompts import DEFAULT, read_prompts

AGREE, DIFFER = 0, 1


def fleet_command(
    backend: BackendOption = "auto",
    model: ModelOption = None,
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")] = "auto",
    prompts: PromptsOption = None,
    trials: Annotated[int, typer.Option(help="How often each rank repeats itself.", min=1)] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for every rank's answer.", min=1)] = 600.0,
    ray: Annotated[bool, typer.Option("--ray", help="Start the ranks by Ray instead of torchrun.")] = False,
    ray_address: Annotated[
        str, typer.Option(help="Of a running Ray cluster, auto to find it; local starts one here.")
    ] = "auto",
    ray_resource: Annotated[
        str, typer.Option(help="What each rank takes one of: CPU, GPU, NPU, or a resource of your cluster.")
    ] = "CPU",
    ranks: Annotated[int, typer.Option(help="Ranks with --ray; 0 for one on each free resource.", min=0)] = 0,
    inject: InjectOption = None,
    inject_rank: Annotated[int, typer.Option(help="The rank that gets the faults of --inject.")] = -1,
    json: JsonOption = None,
    quiet: QuietOption = False,
    trust_remote_code: RemoteCodeOption = False,
) -> int:
    """Run the same probe on every device of a job (torchrun or Ray) and name the one that differs."""
    parse_dtype(dtype)
    member = Member(
        backend=backend,
        model=model.absolute() if model else None,
        dtype=dtype,
        prompts=tuple(read_prompts(prompts)) if prompts else DEFAULT,
        trials=trials,
        inject=tuple(inject or ()),
        inject_rank=inject_rank,
        trust_remote_code=trust_remote_code,
    )

    def announce(judgement: Judgement, answers: Mapping[int, Answer]) -> int:
        return _announce(judgement, answers, backend, json, quiet)

    require_outputs([json] if json else [])
    if ray:
        from srdd.fleet.ray_cluster import run_on_ray

        return run_on_ray(member, ranks, ray_address, ray_resource, timeout, announce)
    with meeting(timeout) as met:
        require_member(member, met.world)
        return run_fleet(met, member, timeout, announce)


def _announce(judgement: Judgement, answers: Mapping[int, Answer], backend: str, json: Path | None, quiet: bool) -> int:
    errors = {(answer.error, answer.exit_code) for answer in answers.values()}
    if len(answers) == judgement.world and len(errors) == 1 and judgement.failed:
        message, code = errors.pop()
        raise _UnanimousError(message, code)
    if json is not None:
        write_text(json, json_module.dumps(judgement_json(judgement, answers), indent=1) + "\n")
    text = verdict_line(judgement) if quiet else judgement_text(judgement, answers, backend)
    Console(soft_wrap=True).print(text, highlight=False, markup=False)
    return AGREE if judgement.verdict == "agree" else DIFFER


class _UnanimousError(UsageError):
    """All ranks fail for the same reason: it is the command's, not one device's."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code
