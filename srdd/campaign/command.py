"""`python -m srdd campaign`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from hal.files import require_writable, write_text
from hal.progress_bar import progress_bar
from hal.registry import get_backend
from srdd.campaign.file import read_campaign, shipped
from srdd.campaign.markdown import render
from srdd.campaign.outcome import Outcome
from srdd.campaign.result import Result, result_of, to_json
from srdd.campaign.run import WHOLE, Plan, default_jobs, parse_shard, plan_campaign, require_directory, run_plan
from srdd.campaign.score import judge

PERFECT, IMPERFECT = 0, 1
TIMEOUT_S = 1800.0


def campaign_command(
    campaign: Annotated[
        str,
        typer.Argument(help=f"A campaign file, or a shipped one: {', '.join(shipped())}."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Directory for journal and results; a run that ended early goes on there.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")] = None,
    backend: Annotated[
        str, typer.Option(help="Backend to run on: auto, cpu-reference, cuda, npu, or a plug-in's.")
    ] = "auto",
    device: Annotated[str | None, typer.Option(help="Device: an index, or for example npu:1.")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint directory, instead of the campaign's own.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; as many as processors and memory allow if left out.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Scan a sample of that many cases only.")] = None,
    shard: Annotated[str | None, typer.Option(help="K/N: the K-th of N parts, for several machines.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which a case is given up.")] = TIMEOUT_S,
    list_cases: Annotated[bool, typer.Option("--list", help="Say how many cases there are, and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print one line only.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")
    ] = False,
) -> int:
    """Scan a model with many simulated faults, one at a time, and without; score what the scans say."""
    part = parse_shard(shard) if shard else WHOLE
    if json_file is not None:
        require_writable(json_file)
    document = read_campaign(campaign)
    whole = plan_campaign(document, backend, device, model, trust_remote_code)
    plan = whole.part(limit, part)
    if list_cases:
        Console().print(_count(plan), highlight=False, soft_wrap=True)
        return PERFECT
    jobs = jobs or default_jobs(get_backend(plan.setup.backend, device), plan.setup.directory)
    if out is not None:
        require_directory(out)
    with _progress(quiet, len(plan.cases)) as report:
        outcomes = run_plan(plan, out, jobs, timeout, part, report)
    command = _command(campaign, backend, model, limit, shard)
    named = plan.setup.directory.resolve().name
    result = result_of(Path(campaign).stem, document, named, command, plan.provenance, len(whole.cases), outcomes)
    _write(result, out if part == WHOLE else None, json_file)
    _show(result, quiet)
    return PERFECT if result.score.perfect else IMPERFECT


def _count(plan: Plan) -> str:
    kinds = Counter(f"{'fault' if case.fault else 'clean'} {case.dtype}" for case in plan.cases.values())
    return f"{len(plan.cases)} cases: " + ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))


def _command(campaign: str, backend: str, model: Path | None, limit: int | None, shard: str | None) -> str:
    options = {"--backend": backend, "--model": model and model.name, "--limit": limit, "--shard": shard}
    given = [f"{name} {value}" for name, value in options.items() if value is not None]
    return " ".join(["python -m srdd campaign", Path(campaign).name, *given])


def _write(result: Result, out: Path | None, json_file: Path | None) -> None:
    text = json.dumps(to_json(result), indent=1, allow_nan=False) + "\n"
    if out is not None:
        write_text(out / "result.json", text)
        write_text(out / "result.md", render(result))
    if json_file is not None:
        write_text(json_file, text)


def _show(result: Result, quiet: bool) -> None:
    if not quiet:
        Console().print(Markdown(render(result)))
        return
    rates = result.score.rates
    parts = [f"{name} {rates[name].count}/{rates[name].of}" for name in ("layer", "operator", "kind", "false_alarms")]
    Console().print(", ".join(parts), highlight=False, soft_wrap=True)


@contextmanager
def _progress(quiet: bool, total: int) -> Iterator[Callable[[Outcome | None, int], None]]:
    """A bar with an estimate of the time left, and the number of misses and false alarms so far in this run."""
    wrong = 0

    def report(outcome: Outcome | None, done: int) -> None:
        nonlocal wrong
        wrong += outcome is not None and _wrong(outcome)
        bar.update(task, completed=done, description=f"scanning cases, {wrong} wrong")

    with progress_bar(quiet) as bar:
        task = bar.add_task("scanning cases", total=total)
        yield report


def _wrong(outcome: Outcome) -> bool:
    if outcome.fault is None or not (outcome.changed or outcome.error):
        return bool(outcome.findings or outcome.error)
    return not judge(outcome)["layer"]
