"""The standards as named profiles: which figures of a row have to stay below which limits.

Names, limits and sources are in standards.json; here is what they mean. Where equality is asked for, or the places
of Inf and NaN differ, every standard fails.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from conformance.formats import FORMATS, short
from conformance.rows import Errors, Row
from hal.errors import UsageError

_T = {short(dtype): form.single for dtype, form in FORMATS.items()}
SINGLE_MARE_FACTOR = 10
MATCHED = 0.99
ULP_SHARE_16_BIT = 0.001
ULP_SHARE_FLOAT32, ULP_MEAN_FLOAT32 = 0.05, 64
SMALL_RATIO = 2.0
LARGEST_SLACK, MEAN_SLACK = 10.0, 2.0  # level L0 of the dual standard


@dataclass(frozen=True)
class Judgement:
    """Whether a row passes, and in words which figure exceeds which limit where it does not."""

    passed: bool
    reason: str = ""


PASSED = Judgement(True)


@dataclass(frozen=True)
class Figure:
    """One figure of a row: its name, value and limit. In a comparison a value beyond the limit still passes where it
    is within `slack` times the reference device's own figure; zero grants nothing.
    """

    name: str
    value: float
    limit: float
    slack: float = 0.0


@dataclass(frozen=True)
class Single:
    """A standard that judges a backend against the host's float64, in `figures` of a row.

    Between two files it is judged as msprobe judges ULP: within the limit, or not worse than the reference device.
    "Not worse" is the dual standard's level L0, a factor of 10 for largest errors and of 2 for means and shares,
    because a single number of one draw varies as much.
    """

    name: str
    about: str
    figures: Callable[[Row], list[Figure]]

    def judge(self, candidate: Row, reference: Row | None = None) -> Judgement:
        """The first figure of `candidate` that exceeds its limit, and `slack` times that of the `reference`."""
        decided = _everywhere(candidate)
        if decided is not None:
            return decided
        figures = self.figures if candidate.dtype in _T else _bound
        if reference is None:
            return _first_excess(figures(candidate), candidate)
        pairs = zip(figures(candidate), figures(reference), strict=True)
        limits = [dataclasses.replace(mine, limit=max(mine.limit, mine.slack * peer.value)) for mine, peer in pairs]
        return _first_excess(limits, candidate)


@dataclass(frozen=True)
class Dual:
    """The dual benchmark: the candidate's errors over those of the reference device, both against the host's
    float64. An error below that of the correctly rounded result counts as the latter on either side: no device
    is asked to round better than correctly.
    """

    name: str
    about: str
    mare: float
    mere: float
    rmse: float
    inputs: int

    def judge(self, candidate: Row, reference: Row) -> Judgement:
        """The first ratio that exceeds its limit."""
        if candidate.dtype not in _T:
            return BOUND.judge(candidate, reference)
        return _everywhere(candidate) or _first_excess(self.ratios(candidate, reference), candidate)

    def ratios(self, candidate: Row, reference: Row) -> list[Figure]:
        """The four ratios with their limits."""
        mine, peer = _at_least(candidate.errors, candidate.ideal), _at_least(reference.errors, reference.ideal)
        small = candidate.errors.small_errors / max(reference.errors.small_errors, 1)
        return [
            Figure("MARE ratio", _ratio(mine.mare, peer.mare), self.mare),
            Figure("MERE ratio", _ratio(mine.mere, peer.mere), self.mere),
            Figure("RMSE ratio", _ratio(mine.rmse, peer.rmse), self.rmse),
            Figure("small-value error ratio", small, SMALL_RATIO),
        ]


def _bound(row: Row) -> list[Figure]:
    return [Figure("error in units of what rounding explains", row.excess, 1.0)]


def _ulp(row: Row) -> list[Figure]:
    if row.dtype == "float32":
        # Passes by either figure, so the one nearer to its limit decides.
        mean, share = row.mean_ulp / ULP_MEAN_FLOAT32, row.over_32_ulp / ULP_SHARE_FLOAT32
        return [Figure("mean ULP over 64, or share above 32 ULP over 5 %,", min(mean, share), 1.0, MEAN_SLACK)]
    return [Figure("share of elements above 1 ULP", row.over_1_ulp, ULP_SHARE_16_BIT, MEAN_SLACK)]


def _single(row: Row) -> list[Figure]:
    limit = _T[row.dtype]
    return [
        Figure("MERE", row.single_mere, limit, MEAN_SLACK),
        Figure("MARE", row.single_mare, SINGLE_MARE_FACTOR * limit, LARGEST_SLACK),
    ]


def _mixed(row: Row) -> list[Figure]:
    return [
        Figure("share of elements outside the tolerance", 1.0 - row.mixed_matched, 1.0 - MATCHED, MEAN_SLACK),
        Figure("largest error over max(floor, 32 ULP)", row.mixed_excess, 1.0, LARGEST_SLACK),
    ]


_FIGURES: Mapping[str, Callable[[Row], list[Figure]]] = {
    "bound": _bound,
    "ulp": _ulp,
    "single": _single,
    "mixed": _mixed,
}


def _read() -> dict[str, Single | Dual]:
    text = resources.files("conformance").joinpath("standards.json").read_text(encoding="utf-8")
    return {name: _standard(name, entry) for name, entry in json.loads(text).items()}


def _standard(name: str, entry: dict[str, Any]) -> Single | Dual:
    about = f"{entry['about']} ({entry['source']})"
    if "ratios" in entry:
        return Dual(name, about, inputs=entry["inputs"], **entry["ratios"])
    return Single(name, about, _FIGURES[entry["figures"]])


BOUND = Single("bound", "the error that rounding of the operator's terms explains", _bound)
STANDARDS: Mapping[str, Single | Dual] = _read()
DEFAULT = BOUND.name


def find_standard(name: str) -> Single | Dual:
    """The profile of that name, or UsageError with the known ones."""
    if name not in STANDARDS:
        raise UsageError(f"unknown standard '{name}': choose one of {', '.join(STANDARDS)}")
    return STANDARDS[name]


def _everywhere(row: Row) -> Judgement | None:
    """What every standard asks: equality where it was asked for, and Inf and NaN where they belong."""
    if row.misplaced:
        return Judgement(False, f"{row.misplaced} of {row.elements} elements are finite on one side only{_at(row)}")
    if row.exact and row.excess > 0:
        return Judgement(False, f"equality was asked for{_at(row)}")
    return PASSED if row.exact else None


def _first_excess(figures: list[Figure], row: Row) -> Judgement:
    for figure in figures:
        if not figure.value <= figure.limit:
            return Judgement(False, f"{figure.name} {figure.value:.3g}, limit {figure.limit:.3g}{_at(row)}")
    return PASSED


def _at(row: Row) -> str:
    return f" ({row.part}, {row.example})" if row.example else f" ({row.part})"


def _at_least(errors: Errors, ideal: Errors) -> Errors:
    return dataclasses.replace(
        errors,
        mare=max(errors.mare, ideal.mare),
        mere=max(errors.mere, ideal.mere),
        rmse=max(errors.rmse, ideal.rmse),
    )


def _ratio(mine: float, peer: float) -> float:
    if peer:
        return mine / peer
    return math.inf if mine else 1.0
