"""What a case brings back: tensors beside what they should be, and statements that have to hold."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hal.ops import as_tensors


class Mismatch(Exception):  # noqa: N818 -- it names what the device did, not an error of this program
    """A statement of a case does not hold on the device; the message says what differs and by how much."""


@dataclass(frozen=True)
class Comparison:
    """One tensor of a case, on the host: the device's `result` and what was `expected`, of one shape.

    Floating results are judged against `expected` in float64. `allowance` is the error that rounding explains,
    elementwise in float64; None asks for equality. With `peers`, the host's results in the same dtype, the
    allowance is instead a multiple of the largest of their errors (see `conformance.rows`).
    """

    part: str
    result: torch.Tensor
    expected: torch.Tensor
    allowance: torch.Tensor | None = None
    peers: tuple[torch.Tensor, ...] = ()


@dataclass
class Evidence:
    """All that one run of a case found: `comparisons` to be judged, `agreement`, texts that must be the same on
    every backend, `facts`, texts that may differ and that people want to know, and a digest of the `inputs`.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    agreement: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    inputs: str = ""

    def equal(self, part: str, result: torch.Tensor, expected: torch.Tensor) -> None:
        """The device's `result` has to be `expected`, value for value; zeros of either sign are equal."""
        self._add(Comparison(part, _host(result), _host(expected)))

    def same(self, part: str, result: torch.Tensor, again: torch.Tensor) -> None:
        """Two results of one device have to have the same values; which values is the device's own affair, so nothing
        of them goes into the file.
        """
        first, second = _host(result), _host(again)
        alike = first.shape == second.shape and digest_tensors([first]) == digest_tensors([second])
        if not alike:
            distance = (
                float((first.double() - second.double()).abs().max()) if first.shape == second.shape else math.nan
            )
            raise Mismatch(f"{part}: two results that must be the same differ by up to {distance:.3g}")

    def within(self, part: str, result: torch.Tensor, expected: torch.Tensor, allowance: torch.Tensor | float) -> None:
        """The device's `result` may differ from `expected` (float64, host) by the `allowance`."""
        limit = torch.as_tensor(allowance, dtype=torch.float64).expand(expected.shape)
        self._add(Comparison(part, _host(result), _host(expected), limit))

    def beside(self, part: str, result: torch.Tensor, expected: torch.Tensor, peers: Sequence[torch.Tensor]) -> None:
        """The device's `result` may be as far from `expected` (float64, host) as the level L0 of the dual standard
        lets it be, given the errors of `peers`, results of the host in the same dtype. Where a rounding early on
        moves all of a result, one peer is one draw: give several, from inputs that differ by a unit in the last place.
        """
        self._add(Comparison(part, _host(result), _host(expected), peers=tuple(_host(peer) for peer in peers)))

    def _add(self, comparison: Comparison) -> None:
        if comparison.result.shape != comparison.expected.shape:
            raise Mismatch(
                f"{comparison.part} has shape {tuple(comparison.result.shape)}, "
                f"expected {tuple(comparison.expected.shape)}"
            )
        self.comparisons.append(comparison)


def require(condition: bool, message: str) -> None:
    """Raise Mismatch with `message` unless the condition holds."""
    if not condition:
        raise Mismatch(message)


def digest_tensors(tensors: Iterable[torch.Tensor]) -> str:
    """A short digest of the dtypes, shapes and values of host tensors; zeros of either sign count as one value, and
    so do all NaNs.
    """
    state = hashlib.blake2b(digest_size=12)
    for tensor in tensors:
        state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        plain = tensor.detach().contiguous()
        if plain.is_floating_point():
            plain = torch.where(plain.isnan(), float("nan"), torch.where(plain == 0, 0.0, plain))
        state.update(plain.view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def digest_arguments(arguments: Iterable[Any]) -> str:
    """A short digest of an operator's arguments, tensors and numbers."""
    state = hashlib.blake2b(digest_size=12)
    for value in arguments:
        text = digest_tensors([value]) if isinstance(value, torch.Tensor) else repr(value)
        state.update(text.encode() + b";")
    return state.hexdigest()


def _host(value: torch.Tensor) -> torch.Tensor:
    return as_tensors(value)[0]
