"""Replay a layer on the host, module by module, under its own input and under inputs that reach further."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from hal.clean_layers import CleanLayers
from hal.structure import LayerStack
from srdd.measurements import SiteReplay, WeightDamage, WrongConstant
from srdd.probes.samples import unit_roundoff
from srdd.replay.capture import ModuleCall, record
from srdd.replay.compare import DRAWS, Comparison, compare_call, violating, within_rounding
from srdd.replay.constants import constants_of, explains, repairing_constant
from srdd.replay.module import ReplayDivergedError, replay_module
from srdd.replay.part import amplified_and_tiny, run_part, spiked, tiny_rows, unchanged
from srdd.replay.repeat import errs_alike
from srdd.replay.weights import damaged_weights, outside
from srdd.walk import LayerVisit


class HostReplay:
    """Compares every layer it is shown with a clean copy. `recording` wraps a device run of the layer, whose
    calls are replayed when the block ends; `excite_submodules` adds runs of the layer's parts; `finish` gives
    the worst result of each site and forgets the layer.
    """

    def __init__(self, model: nn.Module, stack: LayerStack, checkpoint: Path | None, seed: int) -> None:
        self.notes: list[str] = []
        self._clean_layers = CleanLayers(model, stack, checkpoint)
        self._seed = seed
        self._outside = outside(model, stack)
        self._last = len(stack) - 1
        self._found: dict[tuple[str, str], list[tuple[str, Comparison]]] = defaultdict(list)
        self._wrong: dict[str, list[tuple[float, ModuleCall]]] = defaultdict(list)
        self._repeats: dict[str, bool | None] = {}
        self._clean: nn.Module | None = None
        self._own_run: ModuleCall | None = None

    @contextmanager
    def recording(self, visit: LayerVisit, excitation: str) -> Iterator[None]:
        """Record the layer's run inside the block and replay it."""
        with record(visit.call.layer) as trees:
            yield
        for tree in trees:
            if self._own_run is None:
                self._own_run = tree
            self._compare_tree(visit, tree, excitation)

    def excite_submodules(self, visit: LayerVisit) -> int:
        """Run each innermost module of the layer on its own input with rows amplified and rows made tiny, and each
        direct part on a spiked one, and replay those runs. A module that differs is asked again, to see whether it errs
        in the same way. Returns how many times the layer's work was done, at most.
        """
        if self._own_run is None:
            return 0
        # Only innermost modules are amplified: an attention whose scores grow by the square is too near a tie to judge.
        for call in [call for call in self._own_run.walk() if not call.children]:
            constants = constants_of(visit.call.layer.get_submodule(call.name)).values()
            tiny = tiny_rows(constants, visit.call.stream.dtype)
            self._excite(visit, call, "amplified and tiny part", partial(amplified_and_tiny, tiny=tiny))
        for call in self._own_run.children:
            self._excite(visit, call, "spiked part", spiked)
        return 2 + self._ask_again(visit)

    def weights(self, visit: LayerVisit) -> tuple[WeightDamage, ...] | None:
        """The parameters of the layer that differ from the checkpoint, and with the first and the last layer
        those before and behind the layers; None without a checkpoint.
        """
        source = self._clean_layers.weights
        if source is None:
            return None
        parameters = {f"{visit.site}.{name}": value for name, value in visit.call.layer.named_parameters()}
        if visit.index == 0:
            parameters |= self._outside.before
        if visit.index == self._last:
            parameters |= self._outside.behind
        return tuple(damaged_weights(parameters, source))

    def finish(self, visit: LayerVisit) -> tuple[SiteReplay, ...]:
        """The worst result of each site of the layer just replayed, the layer's own first."""
        constants = {name: self._constant(visit, wrong) for name, wrong in self._wrong.items()}
        rows = [
            _site_replay(visit.site, *place, found, None if place[1] else constants.get(place[0]), self._repeats)
            for place, found in self._found.items()
        ]
        self._clean, self._own_run = None, None
        self._found.clear()
        self._wrong.clear()
        self._repeats = {}
        return tuple(sorted(rows, key=lambda row: (row.depth, row.site, row.operator)))

    def _excite(
        self, visit: LayerVisit, call: ModuleCall, name: str, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        for tree in run_part(visit.call.layer, call, visit.call.stream.device, change):
            self._compare_tree(visit, tree, name)

    def _ask_again(self, visit: LayerVisit) -> int:
        """Call each module that differs once more; returns how many times the layer's work was done, at most."""
        self._repeats = {name: self._errs_alike(visit, wrong[0][1]) for name, wrong in self._wrong.items()}
        return 1 if self._wrong else 0

    def _errs_alike(self, visit: LayerVisit, call: ModuleCall) -> bool | None:
        """Whether a module errs in the same way when it is called again as in `call`."""
        roundoff, clean = unit_roundoff(visit.call.stream.dtype), self._clean_of(visit)
        again = run_part(visit.call.layer, call, visit.call.stream.device, unchanged)
        try:
            first, second = (replay_module(entry, clean, roundoff, self._seed) for entry in (call, *again))
        except ReplayDivergedError:
            return False
        return errs_alike(first.errors(), second.errors(), violating(first, visit.call.stream.dtype))

    def _clean_of(self, visit: LayerVisit) -> nn.Module:
        if self._clean is None:
            self._clean = self._clean_layers.layer(visit.index)
        return self._clean

    def _compare_tree(self, visit: LayerVisit, tree: ModuleCall, excitation: str) -> None:
        clean = self._clean_of(visit)
        for call in tree.walk():
            try:
                draws = DRAWS[:1] if self._accused(call.name) else DRAWS
                natural = excitation.startswith("repeat")
                comparisons = compare_call(call, clean, visit.call.stream.dtype, self._seed, draws, natural)
            except ReplayDivergedError as error:
                self.notes.append(f"{visit.site}: not replayed under '{excitation}': {error}")
                continue
            for comparison in comparisons:
                self._keep(comparison, excitation)
            violation = comparisons[0].transfer.violation
            if violation > 1:
                self._wrong[call.name].append((violation, call))

    def _accused(self, name: str) -> bool:
        """Whether the module already differs under another input: then there is no doubt left to draw away."""
        return name in self._wrong

    def _constant(self, visit: LayerVisit, wrong: list[tuple[float, ModuleCall]]) -> WrongConstant | None:
        """The constant that explains all the calls of one module that differ by more than rounding, by how much. It is
        sought where they differ most and a small change of it would show.
        """
        calls = [call for _, call in sorted(wrong, key=lambda entry: -entry[0])]
        clean, dtype = self._clean_of(visit), visit.call.stream.dtype
        module = clean.get_submodule(calls[0].name)
        replays = [partial(replay_module, call, clean, unit_roundoff(dtype), self._seed) for call in calls]
        judge = partial(within_rounding, dtype=dtype)
        found = repairing_constant(module, replays[0], judge)
        if found is None or not all(explains(module, found, replay, judge) for replay in replays[1:]):
            return None
        return found

    def _keep(self, comparison: Comparison, excitation: str) -> None:
        self._found[comparison.name, comparison.operator].append((excitation, comparison))


def _site_replay(
    layer: str,
    name: str,
    operator: str,
    found: list[tuple[str, Comparison]],
    constant: WrongConstant | None,
    repeats: Mapping[str, bool | None],
) -> SiteReplay:
    """The worst of a place's comparisons, with the transfers of those that violate under other inputs, the constant
    that explains them, and whether the module errs alike each time.
    """
    excitation, worst = max(found, key=lambda entry: entry[1].transfer.violation)
    others = [entry.transfer for _, entry in found if entry is not worst and entry.transfer.violation > 1]
    return SiteReplay(
        site=f"{layer}.{name}" if name else layer,
        operator=operator,
        excitation=excitation,
        depth=name.count(".") + 1 if name else 0,
        transfer=worst.transfer,
        others=tuple(others),
        drift=max((entry.drift for _, entry in found if not math.isnan(entry.drift)), default=math.nan),
        constant=constant,
        repeats=repeats.get(name),
    )
