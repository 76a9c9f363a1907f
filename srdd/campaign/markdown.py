"""The result of a campaign as a page of Markdown, for the repository and for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from srdd.campaign.calibration import ConfidenceBin
from srdd.campaign.entry import short_form
from srdd.campaign.kinds import EQUIVALENCES
from srdd.campaign.outcome import Outcome
from srdd.campaign.rate import Rate, rate
from srdd.campaign.result import Result, cost_of
from srdd.campaign.score import Group, variant

LISTED = 40

_MEANING = {
    "detected": "a fault is reported at all",
    "layer": "its layer is the first finding (outside the layers: its module)",
    "layer_top3": "its layer is among the first three",
    "layer_alone": "its layer is the only one accused",
    "operator": "module and operator are right, of faults at one",
    "kind": "layer and kind are right",
    "kind_same_name": "the same without the equivalences below",
    "false_alarms": "clean controls with a finding",
}


def render(result: Result) -> str:
    """The whole page."""
    sections = [
        _head(result),
        _rates(result.score.rates),
        *_by_kind(result.score.groups),
        *_by_place(result.score.groups),
        *_confusion(result.score.confusion),
        *_calibration(result.score.confidence),
        *_equivalences(),
        *_list("Faults whose layer was not named first", result.score.misses),
        *_list("Clean controls with an alarm", result.score.alarms),
        *_list("Cases without a scan", result.score.errors),
        *_unchanged(result.score.unchanged),
    ]
    return "\n\n".join(sections) + "\n"


def _head(result: Result) -> str:
    cost = cost_of(result.outcomes)
    part = f" of {result.of}" if len(result.outcomes) != result.of else ""
    versions = ", ".join(f"{name} {value}" for name, value in result.provenance.items())
    return (
        f"# Fault campaign `{result.name}`\n\n"
        f"`{result.command}`\n\n"
        f"{len(result.outcomes)}{part} cases on {result.model}, level {result.campaign.level}, "
        f"dtypes {', '.join(result.campaign.dtypes)}. Median scan {cost['median_scan_s']:.1f} s, at most "
        f"{cost['forward_equivalents']:.1f} forward equivalents.\n\n"
        f"Made with {versions}."
    )


def _rates(rates: Mapping[str, Rate]) -> str:
    rows = [[_MEANING[name], _count(entry), _percent(entry), _interval(entry)] for name, entry in rates.items()]
    return _table(["", "cases", "%", "Wilson 95 %"], rows)


def _by_kind(groups: Sequence[Group]) -> Iterator[str]:
    output = [group for group in groups if group.place == "layer output"]
    if not output:
        return
    extents = list(dict.fromkeys(group.extent for group in sorted(output, key=_width)))
    yield "## Faults on a layer's output: layer named first; layer and kind right"
    for dtype in dict.fromkeys(group.dtype for group in output):
        cells = {(group.kind, group.extent): _pair(group, "kind") for group in output if group.dtype == dtype}
        kinds = dict.fromkeys(kind for kind, _ in cells)
        yield _table([dtype, *extents], [[kind, *(cells.get((kind, name), "") for name in extents)] for kind in kinds])


def _by_place(groups: Sequence[Group]) -> Iterator[str]:
    inside = [group for group in groups if group.place != "layer output"]
    if not inside:
        return
    yield "## Faults of modules, operators and weights: their place named first; module and operator right"
    dtypes = list(dict.fromkeys(group.dtype for group in inside))
    rows = []
    for where in dict.fromkeys(group.place for group in inside):
        for kind in dict.fromkeys(group.kind for group in inside if group.place == where):
            same = [group for group in inside if (group.place, group.kind) == (where, kind)]
            rows.append([where, kind, *(_pairs([group for group in same if group.dtype == dtype]) for dtype in dtypes)])
    yield _table(["place", "kind", *dtypes], rows)


def _confusion(confusion: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    if not confusion:
        return
    reported = sorted({name for counts in confusion.values() for name in counts})
    rows = [[kind, *(str(counts.get(name, "")) for name in reported)] for kind, counts in confusion.items()]
    yield "## What each kind was reported as"
    yield _table(["injected", *reported], rows)


def _calibration(bins: Sequence[ConfidenceBin]) -> Iterator[str]:
    if not bins:
        return
    rows = [
        [f"{entry.low:g} to {entry.high:g}", _count(entry.right), _percent(entry.right), _interval(entry.right)]
        for entry in bins
    ]
    yield "## Confidence of the first finding, and how often it named the place of a fault"
    yield _table(["confidence", "right", "%", "Wilson 95 %"], rows)


def _equivalences() -> Iterator[str]:
    yield "## Kinds that count as right beside the injected one"
    rows = [[entry.injected, entry.when, ", ".join(entry.reported), entry.because] for entry in EQUIVALENCES]
    yield _table(["injected", "when", "reported", "because"], rows)


def _list(title: str, outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield f"## {title}: {len(outcomes)}"
    if outcomes:
        rows = [
            [
                outcome.key[:8],
                str(outcome.case["dtype"]),
                f"`{short_form(outcome.fault)}`" if outcome.fault else "none",
                str(outcome.changed),
                outcome.error or _findings(outcome),
            ]
            for outcome in outcomes[:LISTED]
        ]
        yield _table(["case", "dtype", "fault", "elements changed", "reported"], rows)
    if len(outcomes) > LISTED:
        yield f"and {len(outcomes) - LISTED} more, in the JSON result."


def _unchanged(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield f"## Faults that changed no element, and are not counted: {len(outcomes)}"
    if not outcomes:
        return
    counts = Counter((variant(outcome.fault or {}), _why(outcome)) for outcome in outcomes)
    alarms = sum(bool(outcome.findings) for outcome in outcomes)
    yield _table(["kind", "why", "cases"], [[*names, str(count)] for names, count in sorted(counts.items())])
    yield f"The model was healthy in them; scans with a finding all the same: {alarms}."


def _why(outcome: Outcome) -> str:
    return outcome.impossible or ("met no value that it alters" if outcome.calls else "its place never ran")


def _findings(outcome: Outcome) -> str:
    shown = [f"{entry.layer} {entry.kind} at {entry.site} {entry.operator}".strip() for entry in outcome.findings[:3]]
    return "; ".join(shown) or "healthy"


def _pair(group: Group, second: str) -> str:
    return f"{_count(group.rates['layer'])}; {_count(group.rates[second])}"


def _pairs(groups: Sequence[Group]) -> str:
    if not groups:
        return ""
    sums = [rate(sum(g.rates[name].count for g in groups), sum(g.rates[name].of for g in groups)) for name in _INSIDE]
    return "; ".join(_count(entry) for entry in sums)


_INSIDE = ("layer", "operator")


def _count(entry: Rate) -> str:
    return f"{entry.count}/{entry.of}"


def _percent(entry: Rate) -> str:
    return f"{100 * entry.count / entry.of:.1f}" if entry.of else "-"


def _interval(entry: Rate) -> str:
    return "-" if entry.low is None or entry.high is None else f"{100 * entry.low:.1f} to {100 * entry.high:.1f}"


def _width(group: Group) -> tuple[bool, bool, str]:
    return group.extent != "dense", not group.extent.endswith("%"), group.extent.rjust(12, "~")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
