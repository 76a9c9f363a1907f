"""Replay on the host of what lies outside the layers: embeddings, position tables, the last norm, the head, and the
arithmetic of the model's own code between them and the layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from hal.calls import activation
from hal.clean_outside import CleanOutside, is_lookup, is_product, is_table
from hal.model_weights import WeightSource
from hal.shipped_torch import torch_as_shipped
from hal.structure import LayerStack
from srdd.measurements import ALONE, LayerMeasurement, SiteReplay, WeightDamage
from srdd.probes.samples import unit_roundoff
from srdd.replay.arithmetic import WeightsNotHeldError
from srdd.replay.capture import ModuleCall, map_tensors, tensors_in
from srdd.replay.compare import DRAWS, Comparison, compare_call, compare_value
from srdd.replay.module import replay_own
from srdd.replay.outside_capture import LayerBoundary, record_outside
from srdd.replay.part import Change, excitations, run_part, unchanged
from srdd.replay.sites import Part, SiteComparisons, coarsest_dtype, noted
from srdd.replay.weights import damaged_weights, outside

OWN_INPUT = "repeat_0"
ELEMENTS = 2**22  # of a product that are compared at a time: a head's float64 logits may need more than a layer
EXCITED_ROWS = 64  # of a product's input that are excited, for the same reason


class OutsideReplay:
    """Compares what a model does outside the layers of `stack` with a clean copy. `recording` wraps the model's forward
    pass; `finish` then compares it, runs the parts on inputs that reach further, and gives the worst result of each
    site and the weights that differ from the checkpoint, in the rows of Measurements.outside. `notes` says what could
    not be compared.
    """

    def __init__(self, model: nn.Module, stack: LayerStack, weights: WeightSource | None, seed: int) -> None:
        self.notes: list[str] = []
        self._stack = stack
        self._weights = weights
        self._parameters = outside(model, stack)
        self._clean = CleanOutside(model, stack, weights)
        self._seed = seed
        self._trees: list[ModuleCall] = []
        self._sites: dict[int, SiteComparisons] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the model's forward pass inside the block."""
        with record_outside(self._clean.owner, self._stack) as self._trees:
            yield

    def finish(self, dtype: torch.dtype, device: torch.device) -> tuple[LayerMeasurement, ...]:
        """Compare what was recorded. `dtype` and `device` are those of the model's activations."""
        sites, weights = self._compare_all(dtype, device), self._damage()
        return tuple(
            LayerMeasurement.outside(number, sites.get(number, ()), weights.get(number))
            for number in sorted({*sites, *weights})
        )

    def _damage(self) -> dict[int, tuple[WeightDamage, ...]]:
        if self._weights is None:
            return {}
        ends: dict[int, dict[str, nn.Parameter]] = defaultdict(dict)  # of a single layer, both are one
        ends[0] |= self._parameters.before
        ends[len(self._stack) - 1] |= self._parameters.behind
        return {number: tuple(damaged_weights(found, self._weights)) for number, found in ends.items()}

    def _compare_all(self, dtype: torch.dtype, device: torch.device) -> dict[int, tuple[SiteReplay, ...]]:
        part = Part(self._clean.owner, self._clean.name, coarsest_dtype(self._clean.owner, dtype), device)
        self._sites = defaultdict(lambda: SiteComparisons(part, self._clean.module, self._seed))
        for tree in self._trees:
            for call, layer, handed in _in_order(tree, len(self._stack) - 1):
                with noted(self.notes, f"{part.full_name(call.name)}: not replayed"):
                    self._compare(part, call, layer, handed)
        for sites in self._sites.values():
            sites.ask_again()
            self.notes.extend(sites.notes)
        return {layer: sites.rows() for layer, sites in self._sites.items()}

    def _compare(self, part: Part, call: ModuleCall, layer: int, handed: list[int]) -> None:
        if call.children:
            self._compare_own(part, call, layer, handed)
            return
        module = self._clean.module.get_submodule(call.name)
        compare = self._compare_module
        if is_product(module):
            compare = partial(self._compare_product, whole=self._clean.product(call.name))
        elif is_table(module):
            compare = self._compare_table
        runs = _runs(part, call, is_product(module))
        wrong = [compare(part, run, layer, excitation) for run, excitation in runs]
        if call.name not in self._sites[layer].differing:
            (alone,) = run_part(part.module, _one_token(call), part.device, unchanged)
            wrong.append(compare(part, alone, layer, ALONE))
        if any(wrong):
            self._sites[layer].repeats(call.name, _repeats(part, call))

    def _compare_own(self, part: Part, call: ModuleCall, layer: int, handed: list[int]) -> None:
        """What a module with parts hands to each of them, and what it makes of what they return. A tensor that it
        only passes on is its maker's.
        """
        places = [
            (child.name, True, number)
            for child, number in zip(call.children, handed, strict=True)
            for _ in child.handed()
        ]
        places += [(call.name, False, layer) for _ in tensors_in(call.output)]
        chosen = {number: places[number] for number in _made_by(call)}
        if not chosen:
            return
        try:
            self._compare_made(part, call, chosen)
        except WeightsNotHeldError:
            with self._clean.lent(call.name):
                self._compare_made(part, call, chosen)

    def _compare_made(self, part: Part, call: ModuleCall, chosen: Mapping[int, tuple[str, bool, int]]) -> None:
        """Compare values of the module's own arithmetic, by their numbers; each with its site, whether that was handed
        it, and the layer that it counts to.
        """
        replay = replay_own(call, self._clean.module, unit_roundoff(part.dtype), self._seed)
        for number, (name, of_input, owner) in chosen.items():
            found = Comparison(name, "", compare_value(replay, number, part.dtype), of_input=of_input)
            self._sites[owner].keep([found], OWN_INPUT)

    def _compare_product(self, part: Part, call: ModuleCall, layer: int, excitation: str, whole: nn.Linear) -> bool:
        """Compare a matrix product, some of its units at a time; whether it differs anywhere."""
        output: torch.Tensor = call.output
        units = output.shape[-1]
        step = max(ELEMENTS // max(output.numel() // units, EXCITED_ROWS), 1)
        wrong = False
        for start in range(0, units, step):
            some = slice(start, start + step)
            cut = replace(call, output=output[..., some])
            wrong |= self._compare_with(part, cut, layer, excitation, _units(whole, some))
        return wrong

    def _compare_table(self, part: Part, call: ModuleCall, layer: int, excitation: str) -> bool:
        """Compare a look-up; whether it differs anywhere. Where looking up is all it does, only the rows in question
        are made wide.
        """
        numbers = call.args[0] if call.args else None
        plain = is_lookup(self._clean.module.get_submodule(call.name))
        if not plain or not isinstance(numbers, torch.Tensor):
            return self._compare_with(part, call, layer, excitation, self._clean.table(call.name, None))
        rows, places = torch.unique(numbers, return_inverse=True)
        cut = replace(call, args=(places,))
        return self._compare_with(part, cut, layer, excitation, self._clean.table(call.name, rows))

    def _compare_module(self, part: Part, call: ModuleCall, layer: int, excitation: str) -> bool:
        """Compare any other module; whether it is a position table and differs anywhere: others are asked again by the
        comparisons of their site.
        """
        module = self._clean.module.get_submodule(call.name)
        inner = self._computed_in(call, module) if excitation == OWN_INPUT else None
        if inner is not None:
            return self._compare_with(part, call, layer, excitation, module, inner)
        self._sites[layer].compare(call, excitation)
        return False

    def _computed_in(self, call: ModuleCall, module: nn.Module) -> torch.dtype | None:
        """The dtype that a position table computes in, that of its frequencies whatever its result is rounded to: a
        module without weights whose result depends on no value of its activation, only on its dtype. None for others.
        """
        buffers = [
            buffer for buffer in self._clean.owner.get_submodule(call.name).buffers() if buffer.is_floating_point()
        ]
        x = activation(call.args, call.kwargs)
        if x is None or not buffers or any(True for _ in module.parameters()):
            return None
        return buffers[0].dtype if not _reads(module, call, x) else None

    def _compare_with(
        self,
        part: Part,
        call: ModuleCall,
        layer: int,
        excitation: str,
        clean: nn.Module,
        inner: torch.dtype | None = None,
    ) -> bool:
        drift = excitation == OWN_INPUT
        with torch_as_shipped():
            (found, *_) = compare_call(replace(call, name=""), clean, part.dtype, self._seed, DRAWS, drift, inner)
        self._sites[layer].keep([replace(found, name=call.name)], excitation)
        return found.transfer.violation > 1


def _units(whole: nn.Linear, some: slice) -> nn.Linear:
    """Some of the output units of a matrix product, in float64."""
    cut = nn.Linear(1, 1, bias=False, device="meta")
    cut.weight = nn.Parameter(whole.weight[some].double(), requires_grad=False)
    if whole.bias is not None:
        cut.bias = nn.Parameter(whole.bias[some].double(), requires_grad=False)
    return cut


def _made_by(call: ModuleCall) -> list[int]:
    """Which of the values that a replay of the module's own arithmetic gives it made: none that it was given, by its
    caller or by a part, before.
    """
    given = {id(tensor) for tensor in call.handed()}
    made = []
    for child in call.children:
        made += [id(tensor) not in given and tensor.numel() > 0 for tensor in child.handed()]
        given |= {id(tensor) for tensor in tensors_in(child.output)}
    made += [id(tensor) not in given and tensor.numel() > 0 for tensor in tensors_in(call.output)]
    return [number for number, own in enumerate(made) if own]


def _in_order(tree: ModuleCall, last: int) -> Iterator[tuple[ModuleCall, int, list[int]]]:
    """Each call of the tree, but those of layers, with the number of the layer that it counts to, and the numbers of
    those that what it hands to its parts counts to.
    """
    reached = 0

    def walk(call: ModuleCall) -> Iterator[tuple[ModuleCall, int, list[int]]]:
        nonlocal reached
        handed = []
        for child in call.children:
            if isinstance(child, LayerBoundary):
                reached = last
                handed.append(child.index)
            else:
                handed.append(reached)
                yield from walk(child)
        yield call, reached, handed

    yield from walk(tree)


def _runs(part: Part, call: ModuleCall, large: bool) -> Iterator[tuple[ModuleCall, str]]:
    """The call as it was, and on inputs that reach further where it has an activation."""
    yield call, OWN_INPUT
    if activation(call.args, call.kwargs) is None:
        return
    start = _fewer_rows(call) if large else call
    for name, change in excitations(part.module, call, part.dtype).items():
        for tree in run_part(part.module, start, part.device, change):
            yield tree, name


def _fewer_rows(call: ModuleCall) -> ModuleCall:
    """A product's call with some of its rows, evenly spread."""
    rows = call.args[0].reshape(-1, call.args[0].shape[-1])
    return replace(call, args=(rows[:: -(-rows.shape[0] // EXCITED_ROWS)],))


def _one_token(call: ModuleCall) -> ModuleCall:
    """The call for the last token of its first sequence, as when a text is generated: other kernels may do that."""
    args, kwargs = map_tensors((call.args, call.kwargs), _last_token)
    return replace(call, args=args, kwargs=kwargs)


def _last_token(x: torch.Tensor) -> torch.Tensor:
    if x.dim() < 2 or (x.dim() == 2 and x.is_floating_point()):
        return x[-1:] if x.dim() else x
    return x[:1, -1:]


def _reads(module: nn.Module, call: ModuleCall, x: torch.Tensor) -> bool:
    """Whether the module's result depends on the values of its activation `x`."""

    def run(change: Change) -> list[torch.Tensor]:
        args, kwargs = map_tensors((call.args, call.kwargs), lambda tensor: change(tensor) if tensor is x else tensor)
        with torch.no_grad():
            return tensors_in(module(*args, **kwargs))

    return not all(torch.equal(a, b) for a, b in zip(run(unchanged), run(torch.zeros_like), strict=True))


def _repeats(part: Part, call: ModuleCall) -> bool:
    """Whether the module gives the same again for the same input, bit for bit."""
    (again,) = run_part(part.module, call, part.device, unchanged)
    first, second = tensors_in(call.output), tensors_in(again.output)
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True))
