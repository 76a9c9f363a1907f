"""vLLM, on whatever platform it runs (vllm-ascend and the CPU build included), by its public extension points."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from hal.engines.worker import EngineWorker, name_of, outcome, results
from hal.errors import EngineError

OLDEST: Final = (0, 23)
NEWEST: Final = (0, 32)

EXTENSION: Final = "hal.engines.vllm.WorkerExtension"


class WorkerExtension:
    """Added to vLLM's workers by `LLM(..., worker_extension_cls="hal.engines.vllm.WorkerExtension")`, it lets
    `VllmEngine` call functions beside the model. vLLM gives it every attribute of its worker.
    """

    def hal_call(self, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run a function marked `hal.engines.worker.worker_function` by its name; see `worker.outcome`."""
        return outcome(lambda: _describe(self), function, arguments)


class VllmEngine:
    """A running `vllm.LLM`. Raises EngineError for a vLLM outside the tested releases and for an engine that was
    started without our worker extension.
    """

    def __init__(self, llm: Any) -> None:
        require_version()
        if not callable(getattr(llm, "collective_rpc", None)) or not hasattr(llm, "llm_engine"):
            raise EngineError(f"a {type(llm).__name__} is no vllm.LLM: pass the engine's LLM object")
        _require_extension(llm.llm_engine.vllm_config.parallel_config.worker_extension_cls)
        self.llm = llm

    def call(self, function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """Run a function marked `worker_function` in every worker; their results in the order of ranks."""
        return results(self.llm.collective_rpc("hal_call", args=(name_of(function), arguments)))

    def change(self, function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """`call` for what changes the model's results: cached prefixes from before it are forgotten. EngineError, and
        nothing changed, while requests are running.
        """
        self.forget_prefixes()
        found = self.call(function, **arguments)
        self.forget_prefixes()
        return found

    def forget_prefixes(self) -> None:
        """Empty the prefix cache, whose keys and values belong to the model as it was."""
        if not self.llm.reset_prefix_cache():
            raise EngineError("requests are running, so their cached prefixes cannot be dropped: wait until none is")


def require_version() -> str:
    """The installed vLLM's version; EngineError in one line when there is none, or it is outside the tested range."""
    try:
        version = str(import_module("vllm").__version__)
    except ImportError as error:
        raise EngineError("vLLM is not installed: pip install 'srdd-hal[vllm]' (docs/vllm.md)") from error
    found = _release(version)
    if not OLDEST <= found <= NEWEST:
        raise EngineError(
            f"vLLM {version} is {'older' if found < OLDEST else 'newer'} than what this release knows: "
            f"install vllm>={_text(OLDEST)},<{_text((NEWEST[0], NEWEST[1] + 1))}"
        )
    return version


def _release(version: str) -> tuple[int, ...]:
    parts = version.split("+", maxsplit=1)[0].split(".")[:2]
    if not all(part.isdigit() for part in parts):
        raise EngineError(f"vLLM calls itself version '{version}', which is no release: install one from the registry")
    return tuple(int(part) for part in parts)


def _text(release: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in release)


def _require_extension(configured: str) -> None:
    module, _, name = configured.rpartition(".")
    found = getattr(import_module(module), name, None) if module else None
    if not (isinstance(found, type) and issubclass(found, WorkerExtension)):
        raise EngineError(
            f"the engine was started {f'with worker_extension_cls={configured!r}' if configured else 'without'} "
            f"our worker extension: pass worker_extension_cls='{EXTENSION}' to LLM(...)"
        )


def _describe(worker: Any) -> EngineWorker:
    require_version()
    config = worker.vllm_config
    return EngineWorker(
        model=worker.get_model(),
        rank=worker.rank % config.parallel_config.tensor_parallel_size,
        ranks=config.parallel_config.tensor_parallel_size,
        compiled=_compiled(config.compilation_config),
        state=worker.__dict__.setdefault("hal_state", {}),
    )


def _compiled(compilation: Any) -> str:
    """Why hooks would not run: their modules are traced once, or captured in a device graph and replayed."""
    found = []
    if int(compilation.mode or 0):
        found.append(f"compilation mode {compilation.mode.name}")
    graphs = getattr(compilation.cudagraph_mode, "name", "NONE")
    if graphs != "NONE":
        found.append(f"graph mode {graphs}")
    return ", ".join(found)
