"""A fleet under torchrun: every rank answers, one judges, and nobody waits for ever."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

from hal.errors import HalError, one_line
from srdd.fleet.answer import Answer, from_text, to_text
from srdd.fleet.collective import garbled_senders
from srdd.fleet.meeting import Meeting
from srdd.fleet.member import Member, answer, own_backend
from srdd.fleet.vote import Judgement, judge

_GRACE = 10.0  # seconds: between the steps that follow the answers, and for farewells
_COLLECTIVE = 60.0  # and for the collective, which moves a few hundred kilobytes

Announce = Callable[[Judgement, Mapping[int, Answer]], int]


def run_fleet(meeting: Meeting, member: Member, seconds: float, announce: Announce) -> int:
    """Take part in a fleet as one rank: answer, wait at most `seconds` for the others, and compare. Rank 0 judges;
    where it is silent the next one does. `announce` is called by the judge alone, and what it returns is the judge's
    exit code; the others' is 0.
    """
    start = time.monotonic()
    mine = answer(member, meeting.rank, meeting.local_rank)
    meeting.say(f"answer/{meeting.rank}", to_text(mine))
    until = start + seconds
    if meeting.rank > 0:
        # Whoever is silent before this rank leaves it the judge.
        patience = until + _GRACE * meeting.rank
        go = meeting.hear("collective", patience)
        if go is not None:
            if go == "go":
                _try_collective(meeting, member)
            if meeting.hear("judged", time.monotonic() + _COLLECTIVE + _GRACE * (1 + meeting.rank)) is not None:
                meeting.say(f"heard/{meeting.rank}", "")
                return 0
    return _preside(meeting, member, until, announce)


def _preside(meeting: Meeting, member: Member, until: float, announce: Announce) -> int:
    answers = {rank: from_text(text) for rank, text in meeting.hear_all("answer", until).items()}
    complete = len(answers) == meeting.world and not any(entry.error for entry in answers.values())
    presiding = meeting.rank == 0
    meeting.say("collective", "go" if complete and presiding else "no")
    garbled: list[tuple[int, int]] = []
    notes = [] if complete else ["the collective was not tried, because not every rank answered"]
    if complete and presiding:
        _try_collective(meeting, member)
        garbled, notes = _collective_result(meeting)
    try:
        return announce(judge(answers, meeting.world, garbled, notes), answers)
    finally:
        meeting.say("judged", "")
        goodbye = time.monotonic() + _GRACE
        for rank in answers:  # the store may live in this process: stay until all have read it
            if rank != meeting.rank:
                meeting.hear(f"heard/{rank}", goodbye)


def _try_collective(meeting: Meeting, member: Member) -> None:
    """Gather through the devices and say whose digests arrived changed, or what went wrong."""
    answers = [from_text(text) for _, text in sorted(meeting.hear_all("answer", time.monotonic()).items())]
    try:
        backend = own_backend(member.backend, meeting.local_rank)
        result: object = garbled_senders(meeting, backend, answers, _COLLECTIVE)
    except (HalError, RuntimeError, ValueError) as error:
        result = one_line(error)[:160]
    meeting.say(f"gathered/{meeting.rank}", json.dumps(result))


def _collective_result(meeting: Meeting) -> tuple[list[tuple[int, int]], list[str]]:
    garbled: list[tuple[int, int]] = []
    notes: list[str] = []
    said = meeting.hear_all("gathered", time.monotonic() + _COLLECTIVE)
    for rank in range(meeting.world):
        result = json.loads(said[rank]) if rank in said else "no answer"
        if isinstance(result, str):
            notes.append(f"the collective failed on rank {rank}: {result}")
        else:
            garbled += [(rank, sender) for sender in result]
    return garbled, notes
