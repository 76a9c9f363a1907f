"""Scan a model: walk its layers, measure, diagnose."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hal.backend import NumericMode, TorchBackend
from hal.errors import ModelError, UsageError
from hal.memory import named_when_full
from hal.model_weights import ModelWeights
from hal.registry import get_backend
from hal.streaming import stream_model
from hal.structure import LayerStack, evaluation_mode, find_layer_stack
from srdd.batch import pack
from srdd.diagnose import diagnose
from srdd.execution import plain_execution, unwrapped
from srdd.forward import accepts, run_forward, without_cache
from srdd.measurements import Cost, LayerMeasurement, Measurements
from srdd.probes.architecture import HostResponse
from srdd.probes.measure import PROBES, measure_layer
from srdd.probes.samples import unit_roundoff
from srdd.prompts import DEFAULT, require_prompts
from srdd.replay.host import HostReplay
from srdd.replay.outside import OutsideReplay
from srdd.report.model import Report
from srdd.threads import host_threads
from srdd.trials import TRIALS
from srdd.walk import LayerVisit, Walk

LEVELS = ("quick", "full")

Progress = Callable[[int, int], None]


def scan(
    model: nn.Module,
    tokenizer: Any | None = None,
    backend: str | TorchBackend = "cpu-reference",
    prompts: Sequence[str] | None = None,
    level: str = "full",
    probes: Sequence[str] = PROBES,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    trials: int = TRIALS,
    tokens: int | None = None,
) -> Report:
    """Scan a loaded model where it lies, with whatever hooks or damage it has, and report. `backend` must be
    the one the model is on. `prompts` are the texts to feed (built-in ones by default; drawn token ids when
    `tokenizer` is None). `level` is "quick" for the probes on the device or "full" to add host replay.
    `checkpoint` is the directory from which replay takes clean weights, so that damaged device memory shows;
    without it they are the model's own. `progress(done, total)` is called after each layer. `trials` is how often
    each layer runs on its own input, at least twice: more find faults that come and go. `tokens` is the length of the
    prompts' rows, which are repeated to fill them, for faults that short ones do not show (at most 64 by default). The
    model is left as it was. Raises UsageError for bad arguments and ModelError when the model has no repeated layers or
    is elsewhere.
    """
    require_options(level, probes)
    require_trials(trials)
    target = (get_backend(backend) if isinstance(backend, str) else backend).for_model(model)
    texts = require_prompts(list(prompts) if prompts is not None else list(DEFAULT), "prompts")
    ids = pack(tokenizer, texts, model, tokens)
    given, model = model, unwrapped(model)
    _require_one_stream(model)
    _require_precision(model)
    with (
        named_when_full(
            f"a scan at level {level}", "give it more, fewer prompts or --level quick, or stream (--stream)"
        ),
        plain_execution(given, target.device.type) as notes,
    ):
        stack = find_layer_stack(model)
        clean = Path(checkpoint) if checkpoint else None
        replay, host = None, None
        if level == "full":
            weights = ModelWeights(model, stack, clean) if clean else None
            replay = _Replay(
                HostReplay(model, stack, weights, seed), OutsideReplay(model, stack, weights, seed), weights
            )
        else:
            host = HostResponse(model, stack, clean)
        return _Scan(model, stack, target, ids, tuple(probes), replay, host, seed, progress, trials, notes).run()


def scan_checkpoint(
    directory: str | Path,
    backend: str | TorchBackend = "cpu-reference",
    prompts: Sequence[str] | None = None,
    level: str = "full",
    probes: Sequence[str] = PROBES,
    seed: int = 0,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    trials: int = TRIALS,
    tokens: int | None = None,
    attention: str | None = None,
) -> Report:
    """Scan the checkpoint in `directory` without ever holding more of it than what lies outside its layers, and one
    layer. The measurements are those of `scan`, whose arguments these are; `dtype`, `trust_remote_code`
    and `attention` are those of `hal.models.load_model`.
    """
    require_options(level, probes)
    require_trials(trials)
    target = get_backend(backend) if isinstance(backend, str) else backend
    loaded = stream_model(directory, target, dtype, trust_remote_code, attention)
    return scan(
        loaded.model, loaded.tokenizer, target, prompts, level, probes, seed, loaded.directory, progress, trials, tokens
    )


def require_options(level: str, probes: Sequence[str]) -> None:
    """Raise UsageError for a level or a probe that there is not, or for no probe at all."""
    if level not in LEVELS:
        raise UsageError(f"unknown level '{level}': choose one of {', '.join(LEVELS)}")
    unknown = sorted(set(probes) - set(PROBES))
    if unknown or not probes:
        raise UsageError(f"unknown probes {', '.join(unknown) or '(none given)'}: choose from {', '.join(PROBES)}")


def require_trials(trials: int) -> None:
    """Raise UsageError for fewer than two runs of each layer on its own input."""
    if trials < 2:
        raise UsageError(f"{trials} trials compare nothing: give 2 or more runs of each layer on its own input")


def _require_one_stream(model: nn.Module) -> None:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and accepts(model, "decoder_input_ids"):
        raise ModelError(
            f"{type(model).__name__} is an encoder with a decoder, and a scan walks one stack of layers: "
            "scan its encoder, model.get_encoder()"
        )


def _require_precision(model: nn.Module) -> None:
    if _dtype_of(model) is torch.float64:
        raise ModelError(
            f"{type(model).__name__} is in float64, and a scan judges by float64: load it in float32 or narrower"
        )


@dataclass(frozen=True)
class _Replay:
    """The two replays of a scan, and the clean weights that both take."""

    layers: HostReplay
    outside: OutsideReplay
    weights: ModelWeights | None

    def notes(self) -> tuple[str, ...]:
        """What could not be compared."""
        absent = sorted(self.weights.absent) if self.weights else ()
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        lacking = [f"{absent[0]}{more}: not found in the checkpoint, so the model's own is taken"] if absent else []
        return (*self.layers.notes, *self.outside.notes, *lacking)


class _Scan:
    """The state of one scan: what was measured so far."""

    def __init__(
        self,
        model: nn.Module,
        stack: LayerStack,
        backend: TorchBackend,
        ids: torch.Tensor,
        probes: tuple[str, ...],
        replay: _Replay | None,
        host: HostResponse | None,
        seed: int,
        progress: Progress | None,
        trials: int,
        notes: Sequence[str],
    ) -> None:
        self._model = model
        self._stack = stack
        self._backend = backend
        self._ids = ids
        self._probes = probes
        self._replay = replay
        self._host = host
        self._seed = seed
        self._progress = progress
        self._trials = trials
        self._notes = list(notes)
        self._rows: list[LayerMeasurement] = []
        self._hidden = 0

    def run(self) -> Report:
        walk = Walk(self._stack, self._visit)
        self._backend.reset_peak_memory()
        start = time.perf_counter()
        with (
            evaluation_mode(self._model),
            host_threads(self._stack),
            without_cache(self._model),
            self._backend.numeric_mode(NumericMode(deterministic=True)),
        ):
            environment = self._environment()
            walk.run(self._forward)
            if not self._rows:
                raise ModelError(f"no layer of {self._stack.path} ran during the model's forward pass: nothing to scan")
            measurements = self._measurements()
        cost = Cost(walk.forward_equivalents, time.perf_counter() - start, self._backend.memory().peak)
        level = "full" if self._replay else "quick"
        name = _model_name(self._model)
        return Report(measurements, diagnose(measurements), cost, self._backend.name, name, level, environment)

    def _measurements(self) -> Measurements:
        dtype = _dtype_of(self._model)
        outside = self._replay.outside.finish(dtype, self._backend.device) if self._replay else ()
        return Measurements(
            layers=tuple(sorted(self._rows, key=lambda row: row.index)),
            unit_roundoff=unit_roundoff(dtype),
            dtype=str(dtype).removeprefix("torch."),
            tokens=self._ids.numel(),
            hidden=self._hidden,
            probes=self._probes,
            notes=(*self._notes, *(self._replay.notes() if self._replay else ())),
            known=tuple(self._backend.known_failures.items()),
            outside=outside,
        )

    def _forward(self) -> None:
        # Its hooks come behind those of the walk, which runs layers again inside their own calls.
        with self._replay.outside.recording() if self._replay else nullcontext():
            run_forward(self._model, self._ids.to(self._backend.device))

    def _visit(self, visit: LayerVisit) -> None:
        self._hidden = int(visit.call.stream.shape[-1])
        layers = self._replay.layers if self._replay else None
        self._rows.append(measure_layer(visit, self._probes, self._seed, layers, self._trials, self._host))
        self._notes.extend(visit.notes)
        if self._progress is not None:
            self._progress(len(self._rows), len(self._stack))

    def _environment(self) -> dict[str, str]:
        return {
            "device": str(self._backend.device),
            "device_name": self._backend.device_name(),
            "python": platform.python_version(),
            **self._backend.versions(),
            **self._backend.numeric_switches(),
        }


def _dtype_of(model: nn.Module) -> torch.dtype:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    raise ModelError(f"{type(model).__name__} has no floating-point parameters: nothing to scan")


def _model_name(model: nn.Module) -> str:
    path = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return path or type(model).__name__
