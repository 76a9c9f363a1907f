"""Plan a campaign and run what is still to be done of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from hal.backend import TorchBackend
from hal.bundled import model_dir
from hal.checkpoint import weight_files
from hal.errors import UsageError
from hal.models import model_without_weights
from hal.registry import get_backend
from srdd.campaign.case import Case
from srdd.campaign.execute import Setup
from srdd.campaign.expand import expand, sample, shard
from srdd.campaign.file import BUNDLED, Campaign
from srdd.campaign.journal import journal_name, open_journal, read_journals
from srdd.campaign.outcome import Outcome
from srdd.campaign.provenance import provenance
from srdd.campaign.structure import structure_of
from srdd.campaign.workers import scan_all
from srdd.prompts import read_prompts

WHOLE = (1, 1)

# A worker needs the model, one layer in float64 and its activations, and some room for the libraries themselves.
_MODELS_PER_WORKER = 3
_ROOM = 1 << 30


@dataclass(frozen=True)
class Plan:
    """A campaign ready to run: each case under its key, in order; where it runs; what decides its outcomes."""

    cases: dict[str, Case]
    setup: Setup
    provenance: dict[str, str]

    def part(self, limit: int | None, part: tuple[int, int]) -> Plan:
        """The plan for a sample of at most `limit` cases, and of that for shard `part` = (number, of). Raises
        UsageError for a shard without a case.
        """
        chosen = list(self.cases.values())
        if limit is not None:
            chosen = sample(chosen, limit)
        chosen = shard(chosen, *part)
        if not chosen:
            raise UsageError("this shard has no case: there are fewer cases than shards")
        return replace(self, cases={case.key(self.provenance): case for case in chosen})


def plan_campaign(
    campaign: Campaign,
    backend: str = "auto",
    device: str | None = None,
    model: Path | None = None,
    trust_remote_code: bool = False,
) -> Plan:
    """Expand `campaign` for its own model, or for the checkpoint directory `model` instead. Loads no weights.
    Raises HalError for a backend, checkpoint or entry that cannot be used.
    """
    target = get_backend(backend, device)
    directory = model or (model_dir() if campaign.model == BUNDLED else Path(campaign.model))
    structure = structure_of(model_without_weights(directory, trust_remote_code))
    pool = read_prompts(Path(campaign.prompts)) if campaign.prompts else None
    origin = provenance(target, directory)
    cases = {case.key(origin): case for case in expand(campaign, structure, pool)}
    return Plan(cases, Setup(directory, target.name, device, trust_remote_code), origin)


def run_plan(
    plan: Plan,
    out: Path | None,
    jobs: int,
    timeout_s: float,
    part: tuple[int, int] = WHOLE,
    progress: Callable[[Outcome | None, int], None] = lambda _outcome, _done: None,
) -> list[Outcome]:
    """The outcomes of all cases of `plan`, in its order: read from the journals in `out`, or scanned by `jobs`
    processes and written to the journal of shard `part` there (without `out`, nothing is kept). A case that takes
    longer than `timeout_s` seconds is given up. `progress(outcome, done)` is called at the start, with None, and
    after each case.
    """
    known = read_journals(out) if out else {}
    outcomes = {key: known[key] for key in plan.cases if key in known}
    progress(None, len(outcomes))
    left = [(key, case) for key, case in plan.cases.items() if key not in outcomes]
    with open_journal(out / journal_name(*part)) if out else nullcontext() as journal:
        for outcome in scan_all(left, plan.setup, jobs, timeout_s):
            if journal:
                journal.add(outcome)
            outcomes[outcome.key] = outcome
            progress(outcome, len(outcomes))
    return [outcomes[key] for key in plan.cases]


def default_jobs(backend: TorchBackend, directory: Path) -> int:
    """As many processes as there are processors, as far as host and device memory hold that many models."""
    need = _ROOM + _MODELS_PER_WORKER * sum(path.stat().st_size for path in weight_files(directory))
    memory = min(psutil.virtual_memory().available, backend.memory().total)
    return max(1, min(len(os.sched_getaffinity(0)), int(memory // need)))


def parse_shard(text: str) -> tuple[int, int]:
    """Read K/N as (K, N); raises UsageError unless 1 <= K <= N."""
    number, slash, of = text.partition("/")
    if slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
        return int(number), int(of)
    raise UsageError(f"shard '{text}' is not K/N with K from 1 to N, for example 1/4")


def require_directory(out: Path) -> Path:
    """Make `out` where it does not exist; raises UsageError where that cannot be."""
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make directory {out}: {error.strerror}; choose one whose parent exists") from error
    return out
