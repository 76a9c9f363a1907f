"""From a comparison to figures: every standard is judged from these, so that files can be compared offline."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from conformance.evidence import Comparison, digest_tensors
from conformance.formats import FORMATS, MIXED_ULPS, RELATIVE_OFFSET, Format, short, unit_in_last_place

# Level L0 of the dual standard, for what is judged beside the host's own result in the same dtype.
PEER_MEAN, PEER_ROOT_MEAN_SQUARE = 2.0, 2.0


@dataclass(frozen=True)
class Errors:
    """Of one tensor against the expected values: largest and mean relative error, both over values that are not
    small, root mean square error, and how many small values are off by more than the standard allows.
    """

    mare: float = 0.0
    mere: float = 0.0
    rmse: float = 0.0
    small_errors: int = 0


@dataclass(frozen=True)
class Row:
    """The figures of one tensor of one case.

    `misplaced`: elements that are finite where the expected value is not, or the reverse. `other_kind`: non-finite
    elements of another kind (Inf for NaN). `excess`: the largest error in units of the error that rounding explains,
    infinite where equality was asked for and not found. `ideal`: the errors of the correctly rounded expected values.
    `single_*` and `mixed_*` are the figures of those standards. `digest` and `finite_digest` stand for the values and
    for the places of finite ones. `example` describes the worst element.
    """

    part: str
    seed: int
    dtype: str
    exact: bool
    elements: int
    misplaced: int = 0
    other_kind: int = 0
    excess: float = 0.0
    max_error: float = 0.0
    max_ulp: float = 0.0
    mean_ulp: float = 0.0
    over_1_ulp: float = 0.0
    over_32_ulp: float = 0.0
    errors: Errors = Errors()
    ideal: Errors = Errors()
    single_mare: float = 0.0
    single_mere: float = 0.0
    mixed_matched: float = 1.0
    mixed_excess: float = 0.0
    digest: str = ""
    finite_digest: str = ""
    example: str = ""


def make_row(comparison: Comparison, seed: int) -> Row:
    """The figures of `comparison`; everything is computed on the host, in float64."""
    if not comparison.result.is_floating_point():
        return _count_unequal(comparison, seed)
    result, expected = comparison.result.double(), _as_represented(comparison)
    finite = expected.isfinite() & result.isfinite()
    misplaced = result.isfinite() != expected.isfinite()
    alike = (result == expected) | (result.isnan() & expected.isnan())
    error = torch.where(finite, (result - expected).abs(), 0.0)
    excess = _excess(comparison, error, expected, finite)
    places = comparison.result.isfinite()
    row = Row(
        part=comparison.part,
        seed=seed,
        dtype=short(comparison.result.dtype),
        exact=comparison.allowance is None and not comparison.peers,
        elements=result.numel(),
        misplaced=int(misplaced.sum()),
        other_kind=int((~finite & ~misplaced & ~alike).sum()),
        excess=_largest(excess),
        max_error=_largest(error),
        digest=digest_tensors([comparison.result]),
        finite_digest=digest_tensors([places]),
        example=_example(comparison.result, expected, excess, misplaced),
    )
    form = FORMATS.get(comparison.result.dtype)
    if form is None or not bool(finite.any()):
        return row
    return replace(row, **_figures(error[finite], expected[finite], comparison.result.dtype, form))


def _as_represented(comparison: Comparison) -> torch.Tensor:
    """Expected values in float64; those beyond the largest number of the result's dtype as that dtype has them."""
    wide = comparison.expected.double()
    dtype = comparison.result.dtype
    return torch.where(wide.abs() > torch.finfo(dtype).max, wide.to(dtype).double(), wide)


def _excess(comparison: Comparison, error: torch.Tensor, expected: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    if comparison.peers:
        return torch.full_like(error, _excess_beside(comparison, error, expected, finite))
    if comparison.allowance is None:
        return torch.where(error > 0, math.inf, 0.0)
    return torch.where(error > 0, error / comparison.allowance, 0.0)


def _excess_beside(comparison: Comparison, error: torch.Tensor, expected: torch.Tensor, finite: torch.Tensor) -> float:
    """The device's mean and root mean square error over what the dual standard's L0 allows it, beside its peers."""
    peer_errors = [(peer.double() - expected).abs() for peer in comparison.peers]
    rounded = (expected.to(comparison.result.dtype).double() - expected).abs()
    ratios = []
    for measure, limit in ((_mean, PEER_MEAN), (_root_mean_square, PEER_ROOT_MEAN_SQUARE)):
        allowed = max(measure(each[finite]) for each in (*peer_errors, rounded)) * limit
        got = measure(error[finite])
        ratios.append(got / allowed if allowed else (math.inf if got else 0.0))
    return max(ratios)


def _figures(error: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, form: Format) -> dict[str, Any]:
    ulp = unit_in_last_place(expected, dtype)
    ulps = error / ulp
    size = expected.abs()
    relative = error / (size + RELATIVE_OFFSET)
    rounded = (expected.to(dtype).double() - expected).abs()
    return {
        "max_ulp": _largest(ulps),
        "mean_ulp": _mean(ulps),
        "over_1_ulp": _share(ulps > 1),
        "over_32_ulp": _share(ulps > 32),
        "errors": _errors(error, size, form),
        "ideal": _errors(rounded, size, form),
        "single_mare": _largest(relative),
        "single_mere": _mean(relative),
        "mixed_matched": _share(error <= form.atol + form.rtol * size),
        "mixed_excess": _largest(error / (ulp * MIXED_ULPS).clamp(min=form.floor)),
    }


def _errors(error: torch.Tensor, size: torch.Tensor, form: Format) -> Errors:
    small = size < form.small_value
    relative = (error / (size + RELATIVE_OFFSET))[~small]
    return Errors(
        mare=_largest(relative),
        mere=_mean(relative),
        rmse=_root_mean_square(error),
        small_errors=int((error[small] > form.small_error).sum()),
    )


def _count_unequal(comparison: Comparison, seed: int) -> Row:
    """Integers and booleans are equal or wrong."""
    result, expected = comparison.result, comparison.expected.to(comparison.result.dtype)
    unequal = result != expected
    excess = torch.where(unequal, math.inf, 0.0)
    return Row(
        part=comparison.part,
        seed=seed,
        dtype=short(result.dtype),
        exact=True,
        elements=result.numel(),
        excess=_largest(excess),
        max_error=float((result.double() - expected.double()).abs().max()) if result.numel() else 0.0,
        digest=digest_tensors([result]),
        finite_digest="",
        example=_example(result, expected, excess, torch.zeros_like(unequal)),
    )


def _example(result: torch.Tensor, expected: torch.Tensor, excess: torch.Tensor, misplaced: torch.Tensor) -> str:
    """The worst element in words: a misplaced one, else the one that exceeds its allowance most."""
    if not result.numel():
        return ""
    rank = torch.where(misplaced, math.inf, excess).reshape(-1)
    worst = int(rank.nan_to_num(math.inf).argmax())
    if not float(rank[worst]):
        return ""
    place = (
        [int(index[0]) for index in torch.unravel_index(torch.tensor([worst]), result.shape)] if result.dim() else []
    )
    got, wanted = result.reshape(-1)[worst].item(), expected.reshape(-1)[worst].item()
    return f"element {place}: got {_text(got)}, expected {_text(wanted)}"


def _text(value: float) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _largest(values: torch.Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _mean(values: torch.Tensor) -> float:
    return float(values.mean()) if values.numel() else 0.0


def _root_mean_square(values: torch.Tensor) -> float:
    return math.sqrt(float(values.square().mean())) if values.numel() else 0.0


def _share(condition: torch.Tensor) -> float:
    return float(condition.double().mean())
