"""Replay a layer on the host, module by module, under its own input and under inputs that reach further."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from transformers import DynamicCache

from hal.clean_layers import CleanLayers
from hal.model_weights import WeightSource
from hal.shipped_torch import replaced_in_torch
from hal.skeleton import foreign_code
from hal.structure import LayerStack, dotted
from srdd.decoding import with_cache
from srdd.measurements import ALONE, MASKED, SiteReplay, Subnormals, WeightDamage
from srdd.replay.alike import with_values_alike
from srdd.replay.capture import ModuleCall, record
from srdd.replay.compare import Comparison
from srdd.replay.masked import with_tokens_masked
from srdd.replay.part import AMPLIFIED, RAISED, SPIKED, Change, excitations, run_part, unchanged
from srdd.replay.raised import with_results_raised, with_units_raised
from srdd.replay.sites import Part, SiteComparisons, coarsest_dtype, noted
from srdd.replay.subnormal import count_flushed, flushes, subnormal_rows, with_subnormal_results
from srdd.replay.weights import damaged_weights
from srdd.walk import LayerVisit

NAMED = 5  # replaced functions that a note names
CACHED = 64  # tokens at most: a row, unless they are longer
DECODING = 4  # of them one by one: enough to tell a factor from a sum


class HostReplay:
    """Compares every layer it is shown with a clean copy. `recording` wraps a device run of the layer, whose
    calls are replayed when the block ends; `excite_submodules` adds runs of the layer's parts, of its own arithmetic,
    which sets `subnormals`, and of its attention's; `finish` gives the worst result of each site and forgets the layer.
    """

    def __init__(self, model: nn.Module, stack: LayerStack, weights: WeightSource | None, seed: int) -> None:
        self.notes: list[str] = _foreign(model)
        self._clean_layers = CleanLayers(model, stack, weights)
        self._seed = seed
        self._sites: SiteComparisons | None = None
        self._clean: nn.Module | None = None
        self._own_run: ModuleCall | None = None
        self.subnormals: Subnormals | None = None

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
        """Run each innermost module of the layer on its own input with rows amplified, rows made tiny and rows that
        raise its units, each direct part on a spiked one and with its last product's units raised, the layer's and
        its attention's own arithmetic alone, the latter also with tokens masked, and the layer on one token, and replay
        those runs. A module that differs is asked again, to see whether it errs in the same way. Returns how many times
        the layer's products were computed, at most.
        """
        if self._own_run is None:
            return 0
        # Only innermost modules are amplified: an attention whose scores grow by the square is too near a tie to judge.
        for call in [call for call in self._own_run.walk() if not call.children]:
            self._excite(visit, call, AMPLIFIED)
        for call in self._own_run.children:
            whole = self._comparisons(visit).whole(call.name)
            self._excite(visit, call if whole else with_units_raised(visit.call.layer, call), SPIKED)
        self._excite_own(visit, self._own_run)
        for call in self._own_run.walk():
            self._excite_mean(visit, call)
        for call in self._own_run.walk():
            self._excite_mask(visit, call)
        self._decode(visit)
        return 2 + self._ask_again(visit)

    def _decode(self, visit: LayerVisit) -> None:
        """Run the layer on the last tokens of its first sequence one by one, with the keys and values of those before
        in a cache, as when a text is generated: other kernels may do that. Not asked of a layer that differs already.
        """
        if not visit.call.takes_cache() or self._comparisons(visit).differing:
            return
        trees: list[ModuleCall] = []

        def one_by_one(cache: DynamicCache, tokens: int) -> None:
            first = max(tokens - DECODING, 1)
            visit.run_part(0, first, cache, alone=True)
            for token in range(first, tokens):
                with record(visit.call.layer) as recorded:
                    visit.run_part(token, token + 1, cache, alone=True)
                trees.extend(recorded)

        with_cache(visit, CACHED, one_by_one, "its work on one token alone not replayed")
        modules: dict[str, list[ModuleCall]] = defaultdict(list)
        for call in (call for tree in trees for call in tree.walk()):
            modules[call.name].append(call)
        for calls in modules.values():
            self._comparisons(visit).compare_steps(calls, ALONE)

    def weights(self, visit: LayerVisit) -> tuple[WeightDamage, ...] | None:
        """The parameters of the layer that differ from the checkpoint; None without a checkpoint."""
        source = self._clean_layers.weights
        if source is None:
            return None
        parameters = {f"{visit.site}.{name}": value for name, value in visit.call.layer.named_parameters()}
        return tuple(damaged_weights(parameters, source))

    def finish(self, visit: LayerVisit) -> tuple[SiteReplay, ...]:
        """The worst result of each site of the layer just replayed, the layer's own first."""
        rows = self._sites.rows() if self._sites else ()
        self.notes.extend(self._sites.notes if self._sites else ())
        self._sites, self._clean, self._own_run, self.subnormals = None, None, None, None
        return rows

    def _excite(self, visit: LayerVisit, call: ModuleCall, name: str) -> None:
        layer, stream = visit.call.layer, visit.call.stream
        for tree in run_part(layer, call, stream.device, excitations(layer, call, stream.dtype)[name]):
            self._compare_tree(visit, tree, name)

    def _excite_own(self, visit: LayerVisit, own: ModuleCall) -> None:
        """Run the layer's own arithmetic, and nothing below it, on results that bring each unit of the stream up, and
        on subnormal numbers where the device keeps them.
        """
        call = None if self._comparisons(visit).whole(own.name) else with_results_raised(own)
        if call is None:
            return
        if flushes(visit.call.stream):
            self._run_alone(visit, call, RAISED)
            return
        call, change = with_subnormal_results(call, self._seed), partial(subnormal_rows, seed=self._seed)
        self._run_alone(visit, call, RAISED, change, partial(self._count_flushed, visit))

    def _count_flushed(self, visit: LayerVisit, tree: ModuleCall) -> None:
        self.subnormals = count_flushed(tree, self._clean_of(visit))

    def _excite_mean(self, visit: LayerVisit, own: ModuleCall) -> None:
        """Run an attention's own arithmetic, and nothing below it, on values that bring each unit of their mean up."""
        call = None if self._comparisons(visit).whole(own.name) else with_values_alike(own)
        if call is not None:
            asked = partial(self._comparisons(visit).compare_mean, excitation=RAISED)
            self._run_alone(visit, call, RAISED, asked=asked)

    def _excite_mask(self, visit: LayerVisit, own: ModuleCall) -> None:
        """Run an attention's own arithmetic, and nothing below it, on sequences of different lengths, which need a
        mask. Not asked of a layer that differs already.
        """
        call = None if self._comparisons(visit).differing else with_tokens_masked(visit.call.layer, own)
        if call is not None:
            self._run_alone(visit, call, MASKED)

    def _run_alone(
        self,
        visit: LayerVisit,
        call: ModuleCall,
        excitation: str,
        change: Change = unchanged,
        asked: Callable[[ModuleCall], None] | None = None,
    ) -> None:
        """Run a module whose parts are stubs on the device, replay what it made of them, and hand it on to `asked`."""
        with noted(self.notes, f"{dotted(visit.site, call.name)}: its own arithmetic not run alone"):
            for tree in run_part(visit.call.layer, call, visit.call.stream.device, change):
                self._compare_tree(visit, tree, excitation)
                if asked is not None:
                    asked(tree)

    def _ask_again(self, visit: LayerVisit) -> int:
        """Call each module that differs once more; returns how many times the layer's work was done, at most."""
        return int(self._comparisons(visit).ask_again())

    def _comparisons(self, visit: LayerVisit) -> SiteComparisons:
        if self._sites is None:
            layer, stream = visit.call.layer, visit.call.stream
            part = Part(layer, visit.site, coarsest_dtype(layer, stream.dtype), stream.device)
            self._sites = SiteComparisons(part, self._clean_of(visit), self._seed, self._judged)
        return self._sites

    def _clean_of(self, visit: LayerVisit) -> nn.Module:
        if self._clean is None:
            self._clean = self._clean_layers.layer(visit.index)
        return self._clean

    def _compare_tree(self, visit: LayerVisit, tree: ModuleCall, excitation: str) -> None:
        for call in [call for call in tree.walk() if not call.altered]:
            self._comparisons(visit).compare(call, excitation)

    def _judged(self, comparison: Comparison) -> Comparison | None:
        """The comparison as it counts."""
        return comparison


def _foreign(model: nn.Module) -> list[str]:
    """What the copy on the host has the libraries' own code for, while the model runs another."""
    return [
        f"the host ran {library} own code in place of {', '.join(names[:NAMED])}"
        + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        for library, names in (("transformers'", foreign_code(model)), ("torch's", replaced_in_torch(model)))
        if names
    ]
