"""Functions that run beside the model inside an engine's worker process, called by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from torch import nn

from hal.errors import EngineError, HalError, one_line

_MARK = "_runs_in_workers"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class EngineWorker:
    """What a worker function is given. `model` is the engine's own, or this process's part of it; `rank` and `ranks`
    are its place in tensor parallelism; `state` is kept between calls, for this worker alone. `compiled` says why
    Python hooks on the model would not run, and is empty where they do.
    """

    model: nn.Module
    rank: int
    ranks: int
    compiled: str
    state: dict[str, Any]

    def require_hooks(self) -> None:
        """Raise EngineError when hooks on the model would silently not run."""
        if self.compiled:
            raise EngineError(
                f"this engine runs its model as compiled graphs ({self.compiled}), which skip hooks without a word: "
                "start it with enforce_eager=True"
            )


def worker_function(function: F) -> F:
    """Mark a module-level function `f(worker: EngineWorker, **arguments)` as one that may be called in workers.
    Arguments and result cross process borders: numbers, strings, lists and dicts of them.
    """
    setattr(function, _MARK, True)
    return function


def name_of(function: Callable[..., Any]) -> str:
    """The name under which workers find `function`."""
    if not getattr(function, _MARK, False):
        raise EngineError(f"{function.__qualname__} is not marked with @worker_function: workers would refuse it")
    return f"{function.__module__}:{function.__qualname__}"


def run(worker: EngineWorker, name: str, arguments: dict[str, Any]) -> Any:
    """Call the marked function called `name`; EngineError when there is none."""
    module, _, attribute = name.partition(":")
    function = getattr(import_module(module), attribute, None)
    if not getattr(function, _MARK, False) or function is None:
        raise EngineError(f"'{name}' is no function for workers: mark it with @worker_function")
    return function(worker, **arguments)


def outcome(worker: Callable[[], EngineWorker], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """`run`, with an error of ours as an entry of the answer: engines turn exceptions into pages of text. The result is
    made plain here, because an engine that cannot send it would never answer.
    """
    try:
        return {"result": _plain(name, run(worker(), name, arguments))}
    except HalError as error:
        return {"error": str(error)}


def _plain(name: str, result: Any) -> Any:
    try:
        return json.loads(json.dumps(result))
    except (TypeError, ValueError) as error:
        raise EngineError(f"'{name}' returned what cannot leave its process: {one_line(error)}") from error


def results(answers: list[dict[str, Any]]) -> list[Any]:
    """What each worker returned; an EngineError with the first one's message if any refused."""
    for answer in answers:
        if "error" in answer:
            raise EngineError(answer["error"])
    return [answer["result"] for answer in answers]
