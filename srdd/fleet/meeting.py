"""How the ranks of one job hear of each other: a store of keys, in which nobody waits longer than agreed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from hal.errors import UsageError, one_line

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_POLL = 0.2  # seconds between two looks for a key


class Meeting:
    """The place where `world` ranks put what they have to say, by torchrun's variables; this one is `rank`, number
    `local_rank` on its host. Messages go over the host's network, not through the devices that are under suspicion.
    """

    def __init__(self, store: Any, rank: int, local_rank: int, world: int, topic: str) -> None:
        self.rank = rank
        self.local_rank = local_rank
        self.world = world
        self.store = dist.PrefixStore(topic, store)  # type: ignore[attr-defined]

    def say(self, key: str, text: str) -> None:
        """Put `text` under `key`, for all to read."""
        self.store.set(key, text)

    def hear(self, key: str, until: float) -> str | None:
        """What stands under `key`, or None when nothing does at the time `until` (of `time.monotonic`)."""
        while not self.store.check([key]):
            if time.monotonic() >= until:
                return None
            time.sleep(_POLL)
        text: str = self.store.get(key).decode()
        return text

    def hear_all(self, topic: str, until: float) -> dict[int, str]:
        """What each rank has said under `topic`, by rank; the silent ones are left out."""
        said = {rank: self.hear(f"{topic}/{rank}", until) for rank in range(self.world)}
        return {rank: text for rank, text in said.items() if text is not None}


@contextmanager
def meeting(seconds: float) -> Iterator[Meeting]:
    """Join the ranks that torchrun, or any launcher that sets the same variables, has started. Raises UsageError when
    there is no such job, or when its rank 0 cannot be reached within `seconds` or is lost.
    """
    if not dist.is_available():
        raise UsageError("this build of torch has no torch.distributed: use one that has, or --ray")
    rank, local_rank, world, address, port = _variables(os.environ)
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]  # which torch has all the same
            address,
            port,
            world,
            is_master=rank == 0 and not hosted,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,  # who never comes has to be named, not waited for
            multi_tenant=True,
        )
        yield Meeting(store, rank, local_rank, world, f"srdd-fleet/{attempt}")
    except (dist.DistError, ConnectionError, TimeoutError) as error:
        raise UsageError(
            f"rank {rank} cannot reach {address}:{port}, where the ranks meet: {one_line(error)}"
        ) from error


def _variables(environment: Mapping[str, str]) -> tuple[int, int, int, str, int]:
    missing = [name for name in VARIABLES if name not in environment]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} not set: start a fleet by `torchrun --nproc-per-node N -m srdd fleet`, or use --ray"
        )
    numbers = {}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not environment[name].isdigit():
            raise UsageError(f"{name}={environment[name]} is no whole number: start a fleet by torchrun")
        numbers[name] = int(environment[name])
    if not numbers["RANK"] < numbers["WORLD_SIZE"]:
        raise UsageError(f"RANK={numbers['RANK']} must be below WORLD_SIZE={numbers['WORLD_SIZE']}")
    return (
        numbers["RANK"],
        numbers["LOCAL_RANK"],
        numbers["WORLD_SIZE"],
        environment["MASTER_ADDR"],
        numbers["MASTER_PORT"],
    )
