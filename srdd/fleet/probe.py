"""The probe that every rank of a fleet runs: the same inputs to the bit, and a digest of everything computed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from hal.backend import NumericMode, TorchBackend
from hal.noise import normal, stream_key
from hal.structure import LayerStack, evaluation_mode, find_layer_stack
from srdd.excitation import Excitation
from srdd.fleet.answer import FORWARD, WEIGHTS, Record
from srdd.forward import run_forward, without_cache
from srdd.replay.capture import map_tensors
from srdd.site_names import lies_in
from srdd.walk import LayerVisit, Walk

OFFSET = 50.0
AMPLIFICATION = 2.0**10
_SEED = 0


def probe(model: nn.Module, backend: TorchBackend, ids: torch.Tensor, trials: int) -> tuple[list[Record], list[int]]:
    """Digests of every parameter, of every module's output in the model's own pass over `ids`, [rows, length], and of
    every module's output when its layer is given made-up inputs; and the indices of those that came out otherwise in
    one of `trials` runs.
    """
    stack = find_layer_stack(model)
    records = [
        Record(WEIGHTS, stack.layer_of(name), name, _digest(backend, parameter))
        for name, parameter in model.named_parameters()
    ]
    with (
        torch.no_grad(),
        evaluation_mode(model),
        without_cache(model),
        backend.numeric_mode(NumericMode(deterministic=True)),
    ):
        runs = [_Run(model, stack, backend).records(ids.to(backend.device)) for _ in range(trials)]
    unstable = [place for place, record in enumerate(runs[0]) if any(_differs(run, place, record) for run in runs[1:])]
    return records + runs[0], [len(records) + place for place in unstable]


class _Run:
    """One pass of the model with all its layers' own."""

    def __init__(self, model: nn.Module, stack: LayerStack, backend: TorchBackend) -> None:
        self._model = model
        self._stack = stack
        self._backend = backend
        self._stage = FORWARD
        self._records: list[Record] = []

    def records(self, ids: torch.Tensor) -> list[Record]:
        with ExitStack() as handles:
            for name, module in self._model.named_modules():
                # What contains the layers returns what the last of them and its head do.
                if name and not lies_in(self._stack.path, name):
                    handles.callback(module.register_forward_hook(self._observer(name)).remove)
            Walk(self._stack, self._visit).run(lambda: run_forward(self._model, ids))
        return self._records

    def _visit(self, visit: LayerVisit) -> None:
        for stage, stream in _inputs(visit.call.stream, visit.index):
            self._stage = stage
            visit.respond(Excitation(stage, stream, 0.0))
        self._stage = FORWARD

    def _observer(self, site: str) -> Any:
        layer = self._stack.layer_of(site)

        def observe(_module: nn.Module, _args: Any, output: Any) -> None:
            self._records.append(Record(self._stage, layer, site, _digest(self._backend, output)))

        return observe


def _inputs(stream: torch.Tensor, layer: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Inputs of the shape, dtype and device of a layer's `stream`, bit for bit the same wherever they are made: exact
    noise, and what it becomes by operations that round correctly everywhere.
    """
    noise = normal(tuple(stream.shape), seed=_SEED, stream=stream_key("srdd.fleet", layer))
    made = {
        "plain": noise,
        "offset_up": noise + OFFSET,
        "offset_down": noise - OFFSET,
        "amplified": noise * AMPLIFICATION,
    }
    for stage, values in made.items():
        yield stage, values.to(stream.dtype).to(stream.device)


def _differs(run: list[Record], place: int, record: Record) -> bool:
    return place >= len(run) or run[place] != record


def _digest(backend: TorchBackend, value: Any) -> str:
    """One digest of all tensors in a module's output."""
    digests: list[int] = []
    map_tensors(value, lambda tensor: digests.append(backend.ops.tensor_digest(tensor)))
    joined = ",".join(map(str, digests)).encode()
    return hashlib.blake2b(joined, digest_size=8).hexdigest()
