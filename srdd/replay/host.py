"""Replay a layer on the host, module by module, under its own input and under inputs that reach further."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hal.clean_layers import CleanLayers
from hal.structure import LayerStack
from srdd.measurements import SiteReplay, WeightDamage
from srdd.replay.capture import ModuleCall, map_tensors, record
from srdd.replay.compare import DRAWS, Comparison, compare_call
from srdd.replay.module import ReplayDivergedError
from srdd.replay.weights import damaged_weights, outside
from srdd.walk import LayerVisit

AMPLIFICATION = -(2.0**6)  # of a submodule's input: larger than its data, and of the other sign


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
        self._worst: dict[tuple[str, str], tuple[str, Comparison]] = {}
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
        """Run each innermost module of the layer on an amplified copy of its own input, and each direct part on
        a spiked one, and replay those runs; returns how many times the layer's work was done.
        """
        if self._own_run is None:
            return 0
        # Only innermost modules are amplified: an attention whose scores grow by the square is too near a tie to judge.
        for call in [call for call in self._own_run.walk() if not call.children]:
            self._excite(visit, call, "amplified part", _amplified)
        for call in self._own_run.children:
            self._excite(visit, call, "spiked part", _spiked)
        return 2

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
        rows = [
            SiteReplay(
                site=f"{visit.site}.{name}" if name else visit.site,
                operator=operator,
                excitation=excitation,
                depth=name.count(".") + 1 if name else 0,
                transfer=comparison.transfer,
            )
            for (name, operator), (excitation, comparison) in self._worst.items()
        ]
        self._worst, self._clean, self._own_run = {}, None, None
        return tuple(sorted(rows, key=lambda row: (row.depth, row.site, row.operator)))

    def _excite(
        self, visit: LayerVisit, call: ModuleCall, name: str, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        part = visit.call.layer.get_submodule(call.name)
        device = visit.call.stream.device
        args, kwargs = _with_changed_activation(call, change, device)
        with record(part) as trees:
            part(*args, **kwargs)
        for tree in trees:
            self._compare_tree(visit, _renamed(tree, call.name), name)

    def _compare_tree(self, visit: LayerVisit, tree: ModuleCall, excitation: str) -> None:
        if self._clean is None:
            self._clean = self._clean_layers.layer(visit.index)
        for call in tree.walk():
            try:
                draws = DRAWS[:1] if self._accused(call.name) else DRAWS
                comparisons = compare_call(call, self._clean, visit.call.stream.dtype, self._seed, draws)
            except ReplayDivergedError as error:
                self.notes.append(f"{visit.site}: not replayed under '{excitation}': {error}")
                continue
            for comparison in comparisons:
                self._keep(comparison, excitation)

    def _accused(self, name: str) -> bool:
        """Whether the module already differs under another input: then there is no doubt left to draw away."""
        kept = self._worst.get((name, ""))
        return kept is not None and kept[1].transfer.violation > 1

    def _keep(self, comparison: Comparison, excitation: str) -> None:
        key = (comparison.name, comparison.operator)
        if key not in self._worst or comparison.transfer.violation > self._worst[key][1].transfer.violation:
            self._worst[key] = (excitation, comparison)


def _with_changed_activation(
    call: ModuleCall, change: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call's arguments back on the device, the first floating-point tensor changed."""
    changed = False

    def restore(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal changed
        if tensor.is_floating_point() and tensor.dim() >= 2 and not changed:
            changed = True
            tensor = change(tensor)
        return tensor.to(device)

    kwargs = call.kwargs
    if "hidden_states" in kwargs:  # as modules name their input; other keyword tensors are masks and positions
        kwargs = {"hidden_states": kwargs["hidden_states"], **kwargs}
    if call.args:
        args = map_tensors(call.args, restore)
        return args, map_tensors(kwargs, restore)
    return (), map_tensors(kwargs, restore)


def _amplified(x: torch.Tensor) -> torch.Tensor:
    top = float(x.float().abs().max())
    scale = AMPLIFICATION
    while abs(scale) * top > torch.finfo(x.dtype).max / 64 and abs(scale) > 1:
        scale /= 2
    return x * scale


def _spiked(x: torch.Tensor) -> torch.Tensor:
    """Each row with one element far above the rest, another one in each row: after a normalisation, the largest
    value it can give.
    """
    top = min(2.0**6 * max(float(x.float().abs().max()), 1.0), torch.finfo(x.dtype).max / 64)
    rows = x.clone().reshape(-1, x.shape[-1])
    rows[torch.arange(rows.shape[0]), torch.arange(rows.shape[0]) % rows.shape[1]] = top
    return rows.reshape(x.shape)


def _renamed(tree: ModuleCall, prefix: str) -> ModuleCall:
    """The tree with names below the layer instead of below the part that was recorded."""
    for call in tree.walk():
        call.name = f"{prefix}.{call.name}" if call.name else prefix
        for entry in call.operators:
            entry.module = call.name
    return tree
