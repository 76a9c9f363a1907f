"""The comparisons of all sites of one part of a model: a layer, or what lies outside the layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from hal.errors import HalError, one_line
from hal.memory import out_of_memory
from hal.shipped_torch import torch_as_shipped
from hal.structure import dotted
from srdd.measurements import SiteReplay, WrongConstant
from srdd.probes.samples import unit_roundoff
from srdd.replay.alike import mean_of
from srdd.replay.capture import ModuleCall, as_batch
from srdd.replay.compare import (
    DRAWS,
    FEW,
    Comparison,
    compare_call,
    compare_mean,
    compare_together,
    violating,
    within_rounding,
)
from srdd.replay.constants import explains, repairing_constant
from srdd.replay.diverged import ReplayDivergedError
from srdd.replay.drift import strongest
from srdd.replay.module import replay_module
from srdd.replay.part import run_part, unchanged
from srdd.replay.repeat import errs_alike
from srdd.site_names import OF_INPUT, OF_OUTPUT

COMPUTED_IN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# What a module's own code raises when it meets float64, or values in the place of its parts, and does not expect it.
_OTHER_CODE = (HalError, RuntimeError, AttributeError, TypeError, ValueError, LookupError)


@dataclass(frozen=True)
class Part:
    """A part of the scanned model: the `module`, its dotted name `site` ("" for the whole model), and the `dtype` and
    `device` of its activations.
    """

    module: nn.Module
    site: str
    dtype: torch.dtype
    device: torch.device

    def full_name(self, name: str) -> str:
        """The name in the model of what is called `name` below the part; what the whole model returns is its output."""
        return dotted(self.site, name) or f"{OF_OUTPUT}{type(self.module).__name__}"


@contextmanager
def noted(notes: list[str], what: str) -> Iterator[None]:
    """Add `what` and the reason to `notes` where the model's own code fails in the block, unless memory ran out."""
    try:
        yield
    except _OTHER_CODE as error:
        if out_of_memory(error):
            raise
        notes.append(f"{what}: {one_line(error)}")


def coarsest_dtype(module: nn.Module, stream: torch.dtype) -> torch.dtype:
    """The dtype with the largest roundings that `module` may compute in: that of its residual stream, which some models
    keep in float32, or of its weights.
    """
    held = [parameter.dtype for parameter in module.parameters() if parameter.dtype in COMPUTED_IN]
    return max([stream, *held], key=lambda dtype: torch.finfo(dtype).eps)


class SiteComparisons:
    """Compares calls below `part` with its `clean` copy, and keeps for each site the worst. `judged` may weaken a
    comparison, or drop it by None. `notes` says what could not be compared.
    """

    def __init__(
        self,
        part: Part,
        clean: nn.Module,
        seed: int,
        judged: Callable[[Comparison], Comparison | None] = lambda comparison: comparison,
    ) -> None:
        self.notes: list[str] = []
        self._part = part
        self._clean = clean
        self._seed = seed
        self._judged = judged
        self._found: dict[tuple[str, str, bool], list[tuple[str, Comparison]]] = defaultdict(list)
        self._wrong: dict[str, list[tuple[float, ModuleCall]]] = defaultdict(list)
        self._repeats: dict[str, bool | None] = {}

    def compare(self, call: ModuleCall, excitation: str) -> None:
        """Compare one call made under `excitation`; where it differs, its operators too."""
        # Where the module already differs under another input there is no doubt left to draw away.
        draws = FEW if call.name in self._wrong else DRAWS
        natural = excitation.startswith("repeat")
        comparisons: list[Comparison] = []
        what = f"{self._part.full_name(call.name)}: not replayed under '{excitation}'"
        with noted(self.notes, what), torch_as_shipped():  # once for all draws
            comparisons = compare_call(call, self._clean, self._part.dtype, self._seed, draws, natural)
        self.keep(comparisons, excitation)
        if comparisons and (violation := comparisons[0].transfer.violation) > 1:
            self._wrong[call.name].append((violation, call))

    def compare_steps(self, calls: Sequence[ModuleCall], excitation: str) -> None:
        """Compare calls of one module that were made one after another under `excitation`: all at once, where that can
        be done and shows nothing, otherwise one by one, and, where they differ, as the rows of one.
        """
        name, once = calls[0].name, as_batch(calls)
        found = None if once is None else self._unless_it_differs(once)
        if found is not None:
            self.keep([found], excitation)
            return
        for call in calls:
            self.compare(call, excitation)
        if name in self.differing:
            with noted(self.notes, f"{self._part.full_name(name)}: not compared together"), torch_as_shipped():
                self.keep(compare_together(calls, self._clean, self._part.dtype, self._seed), excitation)

    def compare_mean(self, call: ModuleCall, excitation: str) -> None:
        """Ask which way the operator leans by which the module of `call` took a mean of values equal in every row."""
        mean = mean_of(call)
        found = None if mean is None else compare_mean(mean)
        self.keep([] if found is None else [found], excitation)

    def _unless_it_differs(self, call: ModuleCall) -> Comparison | None:
        with suppress(*_OTHER_CODE), torch_as_shipped():
            (found, *_) = compare_call(call, self._clean, self._part.dtype, self._seed, DRAWS, drift=False)
            return found if found.transfer.violation <= 1 else None
        return None

    def keep(self, comparisons: list[Comparison], excitation: str) -> None:
        """Count comparisons that were made elsewhere."""
        for comparison in filter(None, map(self._judged, comparisons)):
            self._found[comparison.name, comparison.operator, comparison.of_input].append((excitation, comparison))

    def whole(self, name: str) -> bool:
        """Whether a site was replayed as a whole, its submodules on the host."""
        return any(comparison.whole for _, comparison in self._found.get((name, "", False), ()))

    @property
    def differing(self) -> set[str]:
        """The modules of which a call differed by more than rounding."""
        return {entry.name for found in self._found.values() for _, entry in found if entry.transfer.violation > 1}

    def repeats(self, name: str, alike: bool) -> None:
        """Say of a site that was compared elsewhere whether it errs alike each time."""
        self._repeats[name] = alike

    def ask_again(self) -> bool:
        """Call each module that differs once more, to see whether it errs alike; whether there was any."""
        self._repeats |= {name: self._errs_alike(wrong[0][1]) for name, wrong in self._wrong.items()}
        return bool(self._wrong)

    def rows(self) -> tuple[SiteReplay, ...]:
        """The worst result of each site, the part's own first."""
        constants = {(name, "", False): self._constant(wrong) for name, wrong in self._wrong.items()}
        rows = [self._row(*place, found, constants.get(place)) for place, found in self._found.items()]
        return tuple(sorted(rows, key=lambda row: (row.depth, row.site, row.operator)))

    def _errs_alike(self, call: ModuleCall) -> bool | None:
        """Whether a module errs in the same way when it is called again as in `call`."""
        roundoff = unit_roundoff(self._part.dtype)
        try:
            again = run_part(self._part.module, call, self._part.device, unchanged)
            first, second = (replay_module(entry, self._clean, roundoff, self._seed) for entry in (call, *again))
        except ReplayDivergedError:
            return False
        return errs_alike(first.errors(), second.errors(), violating(first, self._part.dtype))

    def _constant(self, wrong: list[tuple[float, ModuleCall]]) -> WrongConstant | None:
        """The constant that explains all the calls of one module that differ by more than rounding, by how much. It is
        sought where they differ most and a small change of it would show.
        """
        calls = [call for _, call in sorted(wrong, key=lambda entry: -entry[0])]
        module = self._clean.get_submodule(calls[0].name)
        roundoff = unit_roundoff(self._part.dtype)
        replays = [partial(replay_module, call, self._clean, roundoff, self._seed) for call in calls]
        judge = partial(within_rounding, dtype=self._part.dtype)
        found = repairing_constant(module, replays[0], judge)
        if found is None or not all(explains(module, found, replay, judge) for replay in replays[1:]):
            return None
        return found

    def _row(
        self,
        name: str,
        operator: str,
        of_input: bool,
        found: list[tuple[str, Comparison]],
        constant: WrongConstant | None,
    ) -> SiteReplay:
        """The worst of a place's comparisons, with the transfers of those that violate under other inputs, the constant
        that explains them, and whether the module errs alike each time. What it makes of NaN, or of what overflows,
        counts where it errs on nothing else.
        """
        sound = [entry for entry in found if not entry[1].poisoned]
        erring = sound if any(entry.transfer.violation > 1 for _, entry in sound) else found
        excitation, worst = max(erring, key=lambda entry: entry[1].transfer.violation)
        others = [entry.transfer for _, entry in erring if entry is not worst and entry.transfer.violation > 1]
        lean = strongest(entry.lean for _, entry in found)
        site = self._part.full_name(name)
        return SiteReplay(
            site=f"{OF_INPUT}{site}" if of_input else site,
            operator=operator,
            excitation=excitation,
            depth=name.count(".") + 1 if name else 0,
            transfer=worst.transfer,
            others=tuple(others),
            drift=lean.drift,
            factor=lean.factor,
            constant=constant,
            repeats=None if of_input else self._repeats.get(name),
            poisoned=worst.poisoned,
        )
