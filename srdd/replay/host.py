"""Replay a layer on the host, module by module, under its own input and under inputs that reach further."""

from __future__ import annotations

import math
from collections import defaultdict
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
TINY = 2.0**-10  # root mean square of a row whose square is what normalisations add an epsilon to


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
        direct part on a spiked one, and replay those runs; returns how many times the layer's work was done.
        """
        if self._own_run is None:
            return 0
        # Only innermost modules are amplified: an attention whose scores grow by the square is too near a tie to judge.
        for call in [call for call in self._own_run.walk() if not call.children]:
            self._excite(visit, call, "amplified and tiny part", _amplified_and_tiny)
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
        rows = [_site_replay(visit.site, *place, found) for place, found in self._found.items()]
        self._clean, self._own_run = None, None
        self._found.clear()
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
                natural = excitation.startswith("repeat")
                comparisons = compare_call(call, self._clean, visit.call.stream.dtype, self._seed, draws, natural)
            except ReplayDivergedError as error:
                self.notes.append(f"{visit.site}: not replayed under '{excitation}': {error}")
                continue
            for comparison in comparisons:
                self._keep(comparison, excitation)

    def _accused(self, name: str) -> bool:
        """Whether the module already differs under another input: then there is no doubt left to draw away."""
        return any(entry.transfer.violation > 1 for _, entry in self._found.get((name, ""), ()))

    def _keep(self, comparison: Comparison, excitation: str) -> None:
        self._found[comparison.name, comparison.operator].append((excitation, comparison))


def _site_replay(layer: str, name: str, operator: str, found: list[tuple[str, Comparison]]) -> SiteReplay:
    """The worst of a place's comparisons, with the transfers of those that violate under other inputs."""
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
    )


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


def _amplified_and_tiny(x: torch.Tensor) -> torch.Tensor:
    """Three rows of four amplified, each fourth made so small that a wrong epsilon shows."""
    wide = x.float()
    top = float(wide.abs().max())
    scale = AMPLIFICATION
    while abs(scale) * top > torch.finfo(x.dtype).max / 64 and abs(scale) > 1:
        scale /= 2
    result = (wide * scale).reshape(-1, x.shape[-1])
    rows = wide.reshape(-1, x.shape[-1])[1::4]
    result[1::4] = rows * (TINY / rows.square().mean(-1, keepdim=True).sqrt().clamp_min(TINY))
    return result.reshape(x.shape).to(x.dtype)


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
