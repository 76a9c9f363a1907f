"""A fleet over the hosts of a Ray cluster: every rank is a task, and the driver judges."""

from __future__ import annotations

import importlib
from typing import Any

from hal.errors import UsageError, one_line
from srdd.fleet.answer import Answer, from_text, to_text
from srdd.fleet.member import Member, answer, require_member
from srdd.fleet.run import Announce
from srdd.fleet.vote import judge

LOCAL = "local"  # as an address: a cluster of this machine, for the length of the command


def run_on_ray(member: Member, ranks: int, address: str, resource: str, seconds: float, announce: Announce) -> int:
    """Run the probe as `ranks` tasks, or one for every `resource` of the cluster when 0, spread over its hosts, each
    taking one `resource`; wait at most `seconds` for them and judge. Raises UsageError when Ray is not installed, the
    cluster cannot be reached or has fewer of that resource.
    """
    ray = _ray()
    _connect(ray, address, ranks)
    try:
        available = int(ray.cluster_resources().get(resource, 0))
        world = ranks or available
        if world > available:
            raise UsageError(
                f"{world} ranks need {world} of '{resource}' and the cluster has {available}: "
                "give --ranks or --ray-resource that it can serve"
            )
        require_member(member, world)
        answers = _answers(ray, member, world, resource, seconds)
        notes = ["the collective is not tried under Ray: torchrun does"]
        return announce(judge(answers, world, notes=notes), answers)
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError("--ray needs Ray: pip install 'srdd-hal[ray]' on every host, or use torchrun") from error


def _connect(ray: Any, address: str, ranks: int) -> None:
    here = {"include_dashboard": False, "num_cpus": ranks or None}  # tasks on one host may share its processors
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            **(here if address == LOCAL else {}),
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise UsageError(
            f"no Ray cluster at '{address}' ({one_line(error)[:200]}): start one, or give --ray-address {LOCAL}"
        ) from error


def _answers(ray: Any, member: Member, world: int, resource: str, seconds: float) -> dict[int, Answer]:
    options = {**_share(resource), "scheduling_strategy": "SPREAD", "max_retries": 0}
    task = ray.remote(**options)(_answer_text)
    tasks = {task.remote(member, rank): rank for rank in range(world)}
    ready, late = ray.wait(list(tasks), num_returns=world, timeout=seconds)
    for waiting in late:
        ray.cancel(waiting, force=True)
    answers = {}
    for done in ready:
        rank = tasks[done]
        try:
            answers[rank] = from_text(ray.get(done))
        except ray.exceptions.RayError as error:  # the worker died: a crash of the device's driver, out of memory
            answers[rank] = Answer(rank, "host not known", error=one_line(error)[:300], exit_code=1)
    return answers


def _answer_text(member: Member, rank: int) -> str:
    # Ray shows each task the devices that it was given, and no others: the first is its own.
    return to_text(answer(member, rank, local_rank=0))


def _share(resource: str) -> dict[str, Any]:
    """One of the resource, as Ray wants its two own ones and any other to be asked for."""
    own = {"CPU": {"num_cpus": 1}, "GPU": {"num_gpus": 1, "num_cpus": 0}}
    return own.get(resource, {"resources": {resource: 1}, "num_cpus": 0})
