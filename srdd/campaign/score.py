"""Score a campaign: a pure function of its outcomes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srdd.campaign.calibration import ConfidenceBin, calibration
from srdd.campaign.entry import options_of
from srdd.campaign.kinds import accepted_kinds
from srdd.campaign.outcome import Found, Outcome
from srdd.campaign.rate import Rate, rate
from srdd.site_names import lies_in

HEALTHY, ELSEWHERE, ERROR = "(healthy)", "(another place)", "(error)"

# What an outcome is counted by; `operator` only where the fault sits at a module or operator inside the layer.
MEASURES = ("detected", "layer", "layer_top3", "layer_alone", "operator", "kind", "kind_same_name")

_EXTENT = ("sparsity", "units")
_NOT_VARIANTS = frozenset({"site", "operator", "parameter", "seed", "draws", *_EXTENT})


@dataclass(frozen=True)
class Group:
    """The rates of the faults that share a `kind` (its options included), `place`, `extent` and `dtype`."""

    kind: str
    place: str
    extent: str
    dtype: str
    rates: Mapping[str, Rate]


@dataclass(frozen=True)
class Score:
    """The score of a campaign. `rates` holds those of MEASURES over all faults that changed something, and
    `false_alarms` over the clean controls; `groups` splits the former. `confusion` counts, for each injected kind,
    what the faulty layer was reported as; `confidence` says how often first findings were right. `misses` are the
    faults whose layer is not first, `alarms` the clean controls with findings, `unchanged` the faults that changed no
    element, or can be none there, and are not counted, `errors` the cases without a scan, which count as missed or as
    false alarms.
    """

    rates: Mapping[str, Rate]
    groups: tuple[Group, ...]
    confusion: Mapping[str, Mapping[str, int]]
    confidence: tuple[ConfidenceBin, ...]
    misses: tuple[Outcome, ...]
    alarms: tuple[Outcome, ...]
    unchanged: tuple[Outcome, ...]
    errors: tuple[Outcome, ...]

    @property
    def perfect(self) -> bool:
        """Whether every fault's layer is named first, no healthy model raised an alarm and no case failed."""
        return not (self.misses or self.alarms or self.errors or any(entry.findings for entry in self.unchanged))


def score(outcomes: Iterable[Outcome]) -> Score:
    """Score `outcomes`, in any order."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.key)
    clean = [outcome for outcome in ordered if outcome.fault is None]
    unchanged = [outcome for outcome in ordered if outcome.fault and not outcome.changed and not outcome.error]
    faults = [outcome for outcome in ordered if outcome.fault and (outcome.changed or outcome.error)]
    judged = [(outcome, judge(outcome)) for outcome in faults]
    alarms = [outcome for outcome in clean if outcome.findings or outcome.error]
    return Score(
        rates={**_rates([verdict for _, verdict in judged]), "false_alarms": rate(len(alarms), len(clean))},
        groups=_groups(judged),
        confusion=_confusion(faults),
        confidence=calibration(ordered),
        misses=tuple(outcome for outcome, verdict in judged if not verdict["layer"]),
        alarms=tuple(alarms),
        unchanged=tuple(unchanged),
        errors=tuple(outcome for outcome in ordered if outcome.error),
    )


def judge(outcome: Outcome) -> dict[str, bool | None]:
    """Whether the scan of a fault was right, for each of MEASURES; None where the measure does not apply. A case
    without a scan is wrong in all of them.
    """
    fault = _fault(outcome)
    right = outcome.right_place
    places = list(dict.fromkeys(outcome.place_of(entry) for entry in outcome.findings))
    first = outcome.findings[0] if outcome.findings else None
    placed = places[:1] == [right]
    return {
        "detected": bool(outcome.findings),
        "layer": placed,
        "layer_top3": right in places[:3],
        "layer_alone": places == [right],
        "operator": _operator_named(outcome, first) if fault["site"] or fault["operator"] else None,
        "kind": placed and first is not None and first.kind in accepted_kinds(fault),
        "kind_same_name": placed and first is not None and first.kind == fault["kind"],
    }


def extent(fault: Mapping[str, Any]) -> str:
    """How much of the hidden units a fault hits, in words."""
    if fault["units"]:
        return "1 unit" if fault["units"] == 1 else f"{fault['units']} units"
    return "dense" if fault["sparsity"] == 1 else f"{100 * fault['sparsity']:g} %"


def variant(fault: Mapping[str, Any]) -> str:
    """The kind of a fault with every option that is not about place, extent or drawing."""
    options = {key: value for key, value in options_of(fault).items() if key not in _NOT_VARIANTS}
    return " ".join([str(fault["kind"]), *(f"{key}={value}" for key, value in options.items())])


def place(fault: Mapping[str, Any]) -> str:
    """Where in its layer a fault sits, in words."""
    return " ".join(filter(None, (fault["site"], fault["operator"], fault["parameter"]))) or "layer output"


def _operator_named(outcome: Outcome, first: Found | None) -> bool:
    """Whether the finding names the module of the fault and, where the fault is in one operator, that operator:
    then a module below is as right, because an operator runs in the innermost of the modules that hold it.
    """
    fault = _fault(outcome)
    if first is None:
        return False
    if fault["operator"]:
        return lies_in(first.site, outcome.place) and first.operator == fault["operator"]
    return first.site == outcome.place


def _fault(outcome: Outcome) -> Mapping[str, Any]:
    if outcome.fault is None:
        raise ValueError(f"case {outcome.key} is a clean control: there is no fault to judge it by")
    return outcome.fault


def _rates(verdicts: Sequence[Mapping[str, bool | None]]) -> dict[str, Rate]:
    rates = {}
    for measure in MEASURES:
        applicable = [verdict[measure] for verdict in verdicts if verdict[measure] is not None]
        rates[measure] = rate(sum(map(bool, applicable)), len(applicable))
    return rates


def _groups(judged: Sequence[tuple[Outcome, Mapping[str, bool | None]]]) -> tuple[Group, ...]:
    members: dict[tuple[str, str, str, str], list[Mapping[str, bool | None]]] = defaultdict(list)
    for outcome, verdict in judged:
        fault = _fault(outcome)
        members[variant(fault), place(fault), extent(fault), str(outcome.case["dtype"])].append(verdict)
    return tuple(Group(*names, _rates(verdicts)) for names, verdicts in sorted(members.items()))


def _confusion(faults: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in faults:
        counts[str(_fault(outcome)["kind"])][_reported(outcome)] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def _reported(outcome: Outcome) -> str:
    if outcome.error:
        return ERROR
    if not outcome.findings:
        return HEALTHY
    first = outcome.findings[0]
    return first.kind if outcome.rightly_placed else ELSEWHERE
