"""What happens beside the model in an engine's worker: hooks wait for the next forward pass, measure, and go."""

from __future__ import annotations

import platform
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hal.engines.worker import EngineWorker, worker_function
from hal.errors import EngineError, ModelError, one_line
from hal.registry import get_backend
from hal.structure import LayerStack, find_layer_stack
from srdd.diagnose import diagnose
from srdd.live.replay import EngineReplay
from srdd.measurements import Cost, LayerMeasurement, Measurements
from srdd.probes.measure import measure_layer
from srdd.probes.samples import unit_roundoff
from srdd.report.model import Report, to_json
from srdd.walk import LayerVisit, Walk

_KEY = "srdd"


@worker_function
def begin(worker: EngineWorker, name: str, checkpoint: str | None, probes: list[str], seed: int, tokens: int) -> None:
    """Put the scan's hooks on the layers; the next forward pass of `tokens` tokens is scanned. With a `checkpoint`,
    its layers are replayed on the host. Raises EngineError where hooks would not run or a scan is under way.
    """
    worker.require_hooks()
    if _KEY in worker.state:
        raise EngineError("a scan of this engine is under way: let it end first")
    stack = find_layer_stack(worker.model)
    dtype = _dtype(worker.model)
    replay = None
    if checkpoint is not None:
        replay = EngineReplay(Path(checkpoint), dtype, len(stack), seed, whole=worker.ranks == 1)
    scan = _LiveScan(stack, name, tuple(probes), seed, tokens, dtype, replay)
    scan.attach()
    worker.state[_KEY] = scan


@worker_function
def finish(worker: EngineWorker) -> dict[str, Any]:
    """Remove the hooks and return the report as JSON. Raises ModelError when the scan failed or no layer ran."""
    scan = worker.state.pop(_KEY, None)
    if not isinstance(scan, _LiveScan):
        raise EngineError("no scan of this engine is under way")
    return scan.report(worker)


class _GuardedWalk(Walk):
    """A walk whose own failure never becomes the engine's: it ends the measuring and is kept."""

    error = ""

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.error:
            self._guarded(lambda: super(_GuardedWalk, self)._before(layer, args, kwargs))

    def _after(self, index: int) -> Any:
        inner = super()._after(index)

        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            if not self.error:
                self._guarded(lambda: inner(layer, args, output))

        return hook

    def _guarded(self, act: Any) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 -- the engine's requests must not die of a scan
            self.error = one_line(error)


class _LiveScan:
    """One scan of the model in this process."""

    def __init__(
        self,
        stack: LayerStack,
        name: str,
        probes: tuple[str, ...],
        seed: int,
        tokens: int,
        dtype: torch.dtype,
        replay: EngineReplay | None,
    ) -> None:
        self._stack, self._name, self._probes, self._seed = stack, name, probes, seed
        self._tokens, self._dtype, self._replay = tokens, dtype, replay
        self._walk = _GuardedWalk(stack, self._visit)
        self._hooks = ExitStack()
        self._rows: list[LayerMeasurement] = []
        self._hidden = 0
        self._started = 0.0

    def attach(self) -> None:
        """Put the hooks on."""
        self._hooks.enter_context(self._walk.attached())

    def _visit(self, visit: LayerVisit) -> None:
        if visit.call.stream.shape[0] != self._tokens:
            raise ModelError(
                f"the scan's prompt of {self._tokens} tokens met a forward pass of {visit.call.stream.shape[0]}: other "
                "requests were running, or the engine splits prompts; scan an idle engine"
            )
        self._started = self._started or time.perf_counter()
        self._hidden = int(visit.call.stream.shape[-1])
        self._rows.append(measure_layer(visit, self._probes, self._seed, self._replay))

    def report(self, worker: EngineWorker) -> dict[str, Any]:
        """Everything measured, judged."""
        self._hooks.close()
        if self._walk.error:
            raise ModelError(f"the scan ended early: {self._walk.error}")
        if not self._rows:
            raise ModelError("no layer ran while the scan waited: nothing to report")
        backend = get_backend("auto").for_model(worker.model)
        measurements = Measurements(
            layers=tuple(sorted(self._rows, key=lambda row: row.index)),
            unit_roundoff=unit_roundoff(self._dtype),
            dtype=str(self._dtype).removeprefix("torch."),
            tokens=self._tokens,
            hidden=self._hidden,
            probes=self._probes,
            notes=tuple(self._replay.notes) if self._replay else (),
            known=tuple(backend.known_failures.items()),
        )
        cost = Cost(self._walk.forward_equivalents, time.perf_counter() - self._started, None)
        environment = {
            "device": str(backend.device),
            "python": platform.python_version(),
            **backend.versions(),
            "engine": "vllm",
            "rank": f"{worker.rank} of {worker.ranks}",
        }
        level = "full" if self._replay else "quick"
        report = Report(measurements, diagnose(measurements), cost, backend.name, self._name, level, environment)
        return to_json(report)


def _dtype(model: nn.Module) -> torch.dtype:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    raise ModelError(f"{type(model).__name__} has no floating-point parameters: nothing to scan")
