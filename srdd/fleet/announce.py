"""The judgement on a fleet for people, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from srdd.fleet.answer import FORWARD, Answer
from srdd.fleet.vote import Judgement, Odd, Place

SCHEMA = "srdd-fleet/1"


def judgement_text(judgement: Judgement, answers: Mapping[int, Answer], backend: str) -> str:
    """A line for each rank that is at fault, failed or silent, notes, and the verdict."""
    compared = sum(not answer.error for answer in answers.values())
    digests = max((len(answer.records) for answer in answers.values()), default=0)
    lines = [f"SRDD fleet of {judgement.world} ranks on {backend}: {compared} compared, {digests} digests each"]
    lines += [_odd_line(odd, answers[odd.rank]) for odd in judgement.odd]
    if judgement.split:
        groups = " against ".join(_ranks(group) for group in judgement.split.groups)
        lines.append(f"  {groups}: first different at {_place(judgement.split.place)}")
    lines += [f"  {answers[rank].where} failed: {error}" for rank, error in judgement.failed]
    if judgement.silent:
        lines.append(f"  {_ranks(judgement.silent)} did not answer in time: crashed, hanging or never started")
    lines += [
        f"  what rank {sender} sends arrives changed at rank {receiver}: suspect the link between their devices"
        for receiver, sender in judgement.garbled
    ]
    lines += [f"  note: {note}" for note in judgement.notes]
    return "\n".join([*lines, f"VERDICT: {verdict_line(judgement)}"])


def verdict_line(judgement: Judgement) -> str:
    """The verdict and what to do, in one line."""
    if judgement.verdict == "agree":
        return f"all {judgement.world} ranks agree to the last bit"
    if judgement.odd:
        odd = _ranks([entry.rank for entry in judgement.odd])
        return f"{odd} at fault. Next: python -m srdd on that device, for the kind of fault"
    if judgement.garbled:
        return "the ranks compute alike, but what they send arrives changed"
    if judgement.verdict == "undecided":
        return (
            "ranks differ and no majority says which is wrong. Next: add a third rank, "
            "or run python -m srdd on each device"
        )
    lost = _ranks(sorted({*judgement.silent, *(rank for rank, _ in judgement.failed)}))
    return f"{lost} gave no digests; nothing is known against the others"


def judgement_json(judgement: Judgement, answers: Mapping[int, Answer]) -> dict[str, Any]:
    """The judgement as plain JSON values, with where each rank ran."""
    return {
        "schema": SCHEMA,
        "verdict": judgement.verdict,
        **asdict(judgement),
        "ranks": [
            {"rank": rank, "host": answer.host, "device": answer.device, "environment": answer.environment}
            for rank, answer in sorted(answers.items())
        ],
    }


def _odd_line(odd: Odd, answer: Answer) -> str:
    parts = []
    if odd.unstable:
        parts.append("does not repeat itself")
    if odd.weights:
        more = f" and {len(odd.weights) - 1} more" if len(odd.weights) > 1 else ""
        parts.append(f"holds other weights ({odd.weights[0]}{more})")
    if odd.places:
        others = f", and {len(odd.places) - 1} more layers" if len(odd.places) > 1 else ""
        parts.append(f"{'first ' if others else ''}differs at {_place(odd.places[0])}{others}")
    return f"  {answer.where} {'; '.join(parts)}"


def _place(place: Place) -> str:
    layer = f"layer {place.layer}, " if place.layer is not None else ""
    stages = ["the model's own input" if stage == FORWARD else f"input {stage}" for stage in place.stages]
    return f"{layer}{place.site} ({', '.join(stages)})"


def _ranks(ranks: Any) -> str:
    numbers = [str(rank) for rank in ranks]
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    return f"ranks {', '.join(numbers[:-1])} and {numbers[-1]}"
