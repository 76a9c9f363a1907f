"""Do messages between the devices arrive as they were sent? Tried with the digests themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from hal.backend import TorchBackend
from srdd.fleet.answer import Answer
from srdd.fleet.meeting import Meeting


def garbled_senders(meeting: Meeting, backend: TorchBackend, answers: Sequence[Answer], seconds: float) -> list[int]:
    """Gather every rank's digests through the backend's own collective (gloo on the host) and return the ranks whose
    arrive here changed, judged by `answers`, which came another way. Raises what the collective raises.
    """
    size = max(len(answer.records) for answer in answers)
    sent = _payload(answers[meeting.rank], size).to(backend.device)
    received = [torch.empty_like(sent) for _ in answers]
    dist.init_process_group(
        backend.collective,
        store=meeting.store,
        rank=meeting.rank,
        world_size=meeting.world,
        timeout=timedelta(seconds=seconds),
    )
    try:
        dist.all_gather(received, sent)
        backend.synchronize()
    finally:
        dist.destroy_process_group()
    expected = [_payload(answer, size) for answer in answers]
    return [
        answer.rank
        for answer, wanted, arrived in zip(answers, expected, received, strict=True)
        if not torch.equal(arrived.cpu(), wanted)
    ]


def _payload(answer: Answer, size: int) -> torch.Tensor:
    """The answer's digests as int64, [size], zeros behind them."""
    values = [
        int.from_bytes(hashlib.blake2b(record.digest.encode(), digest_size=8).digest(), "little", signed=True)
        for record in answer.records
    ]
    return torch.tensor(values + [0] * (size - len(values)), dtype=torch.int64)
