"""What one rank does: load the model onto its device, run the probe, answer."""

from __future__ import annotations

import platform
import socket
from dataclasses import dataclass
from pathlib import Path

import torch

from hal.backend import TorchBackend
from hal.bundled import model_dir
from hal.errors import HalError, UsageError, one_line
from hal.host import HostBackend
from hal.models import load_model
from hal.registry import get_backend
from srdd.batch import pack
from srdd.faults import parse_fault, simulate
from srdd.fleet.answer import Answer
from srdd.fleet.probe import probe
from srdd.options import require_acted
from srdd.prompts import DEFAULT


@dataclass(frozen=True)
class Member:
    """What every rank of a fleet is told: the backend, the model (the bundled one when None), the texts to feed, how
    often to repeat, and the faults to simulate on rank `inject_rank`.
    """

    backend: str
    model: Path | None = None
    dtype: str = "auto"
    prompts: tuple[str, ...] = DEFAULT
    trials: int = 2
    inject: tuple[str, ...] = ()
    inject_rank: int = -1
    trust_remote_code: bool = False


def own_backend(name: str, local_rank: int) -> TorchBackend:
    """The backend on the device of this rank, which becomes the current one: that of its number on its host. Ranks on
    the host itself share it.
    """
    backend = get_backend(name)
    if isinstance(backend, HostBackend):
        return backend
    if local_rank > 0:
        backend = get_backend(name, local_rank)
    torch.get_device_module(backend.device_type).set_device(backend.index)
    return backend


def answer(member: Member, rank: int, local_rank: int) -> Answer:
    """Run the probe on this rank. What goes wrong becomes the answer, so that the others hear of it."""
    host = socket.gethostname()
    try:
        backend = own_backend(member.backend, local_rank)
        return _probed(member, rank, host, backend)
    except HalError as error:
        return Answer(rank, host, error=" ".join(str(error).split()), exit_code=error.exit_code)
    except Exception as error:  # noqa: BLE001 -- a broken device may raise anything, and the fleet must hear which
        return Answer(rank, host, error=one_line(error)[:500], exit_code=1)


def _probed(member: Member, rank: int, host: str, backend: TorchBackend) -> Answer:
    if isinstance(backend, HostBackend):
        torch.set_num_threads(1)  # threads cut sums into pieces, and every rank has to cut alike
    loaded = load_model(member.model or model_dir(), backend, member.dtype, member.trust_remote_code)
    ids = pack(loaded.tokenizer, member.prompts, loaded.model)
    faults = [parse_fault(text) for text in member.inject] if rank == member.inject_rank else []
    with simulate(loaded.model, faults) as active:
        records, unstable = probe(loaded.model, backend, ids, member.trials)
    require_acted(active)
    return Answer(
        rank,
        host,
        device=str(backend.device),
        environment=_environment(backend),
        records=tuple(records),
        unstable=tuple(unstable),
    )


def _environment(backend: TorchBackend) -> dict[str, str]:
    """What rightly changes the last bit, where it differs."""
    return {
        "device_name": backend.device_name(),
        "machine": platform.machine(),
        **backend.versions(),
        **backend.numeric_switches(),
    }


def require_member(member: Member, world: int) -> None:
    """Raise UsageError for what no rank could do."""
    if world < 2:
        raise UsageError(f"a fleet of {world} has nobody to compare with: start two ranks or more")
    if bool(member.inject) != (member.inject_rank >= 0):
        raise UsageError("--inject and --inject-rank belong together: give both or neither")
    if member.inject_rank >= world:
        raise UsageError(f"--inject-rank {member.inject_rank} does not exist: the ranks are 0 to {world - 1}")
    for text in member.inject:
        parse_fault(text)
