"""The key-value cache gives back what was put into it, bit for bit, each time it is read."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from hal.kv_cache import Read, transform_cache
from srdd.decoding import with_cache
from srdd.measurements import CacheIntegrity
from srdd.probes.samples import to_host, unit_roundoff
from srdd.probes.transfer import describe_transfer
from srdd.walk import LayerVisit

TOKENS = 9  # eight to fill the cache and one that reads them back


def measure_kv_cache(visit: LayerVisit) -> CacheIntegrity | None:
    """Run the layer on its first tokens with a cache, all but one and then that one, and compare what it reads with
    what it stored; where that differs, read it again. None for a layer that takes no cache, does not use the one it is
    given (a recurrence beside attention), wants one of its model's own making, or cannot be run on some of its tokens,
    which `visit.notes` says.
    """
    if not visit.call.takes_cache():
        return None
    accesses: list[tuple[Read, Read]] = []

    def note(stored: Read, returned: Read) -> Read:
        accesses.append((stored, returned))
        return returned

    def read_back(cache: DynamicCache, tokens: int) -> None:
        if tokens < 2:
            return
        visit.run_part(0, tokens - 1, cache)
        again = copy.deepcopy(cache)
        visit.run_part(tokens - 1, tokens, cache)
        if len(accesses) == 2 and not _intact(accesses):
            visit.run_part(tokens - 1, tokens, again)

    with transform_cache(visit.call.layer, note):
        with_cache(visit, TOKENS, read_back, "key-value cache not probed")
    return _compare(accesses) if len(accesses) in (2, 3) else None


def _stored(accesses: Sequence[tuple[Read, Read]]) -> list[torch.Tensor]:
    """The keys and values that the first read should give back."""
    (filled, _), (added, _) = accesses[:2]
    return [torch.cat((old, new), dim=-2) for old, new in zip(filled, added, strict=True)]


def _intact(accesses: Sequence[tuple[Read, Read]]) -> bool:
    """Whether it gave them back."""
    return all(torch.equal(put, got) for put, got in zip(_stored(accesses), accesses[1][1], strict=True))


def _compare(accesses: Sequence[tuple[Read, Read]]) -> CacheIntegrity:
    """What the first read gave, and whether the second, if there was one, gave the same."""
    (_, read), *others = accesses[1:]
    transfers = [
        describe_transfer(to_host(put), to_host(got), np.zeros(1), unit_roundoff(put.dtype))
        for put, got in zip(_stored(accesses), read, strict=True)
    ]
    return CacheIntegrity(
        transfer=max(transfers, key=lambda transfer: transfer.violation),
        repeats=all(
            np.array_equal(to_host(one), to_host(two), equal_nan=True)
            for _, again in others
            for one, two in zip(read, again, strict=True)
        ),
    )
