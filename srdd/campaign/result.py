"""The result of a campaign as a versioned JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from srdd.campaign.entry import short_form
from srdd.campaign.file import Campaign
from srdd.campaign.kinds import EQUIVALENCES
from srdd.campaign.outcome import Outcome
from srdd.campaign.score import Score, score

SCHEMA = "srdd-campaign-result/1"


@dataclass(frozen=True)
class Result:
    """A scored campaign: its `name` and file, the `model`'s name, the `command` that makes it again, what its
    outcomes depend on, the number of cases `of` which these are the `outcomes`, and their `score`.
    """

    name: str
    campaign: Campaign
    model: str
    command: str
    provenance: Mapping[str, str]
    of: int
    outcomes: tuple[Outcome, ...]
    score: Score


def result_of(
    name: str,
    campaign: Campaign,
    model: str,
    command: str,
    provenance: Mapping[str, str],
    of: int,
    outcomes: Sequence[Outcome],
) -> Result:
    """Score the outcomes of a campaign."""
    return Result(name, campaign, model, command, provenance, of, tuple(outcomes), score(outcomes))


def to_json(result: Result) -> dict[str, Any]:
    """The result as a JSON document of SCHEMA."""
    found = result.score
    return {
        "schema": SCHEMA,
        "name": result.name,
        "command": result.command,
        "model": result.model,
        "provenance": dict(result.provenance),
        "campaign": result.campaign.model_dump(by_alias=True),
        "cases": {"all": result.of, "scored": len(result.outcomes)},
        "rates": {name: asdict(rate) for name, rate in found.rates.items()},
        "groups": [asdict(group) for group in found.groups],
        "confusion": {kind: dict(counts) for kind, counts in found.confusion.items()},
        "confidence": [asdict(entry) for entry in found.confidence],
        "equivalences": [entry.to_json() for entry in EQUIVALENCES],
        "misses": [listed(outcome) for outcome in found.misses],
        "alarms": [listed(outcome) for outcome in found.alarms],
        "unchanged": [listed(outcome) for outcome in found.unchanged],
        "errors": [listed(outcome) for outcome in found.errors],
        "cost": cost_of(result.outcomes),
    }


def listed(outcome: Outcome) -> dict[str, Any]:
    """A case in a list: enough to find its line in the journal and to see what happened."""
    return {
        "key": outcome.key,
        "dtype": outcome.case["dtype"],
        "fault": short_form(outcome.fault) if outcome.fault else None,
        "calls": outcome.calls,
        "changed": outcome.changed,
        "findings": [asdict(entry) for entry in outcome.findings],
        "impossible": outcome.impossible,
        "error": outcome.error,
    }


def cost_of(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Seconds of scanning in all and in the middle, and the most forward equivalents that one scan took."""
    seconds = [outcome.wall_s for outcome in outcomes if not (outcome.error or outcome.impossible)]
    return {
        "scan_s": sum(seconds),
        "median_scan_s": median(seconds) if seconds else 0.0,
        "forward_equivalents": max((outcome.forward_equivalents for outcome in outcomes), default=0.0),
    }
