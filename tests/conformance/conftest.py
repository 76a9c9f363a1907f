"""Backends that are right, and backends that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

import hal
from conformance.case import Case
from conformance.cases import all_cases, choose
from conformance.runner import Plan, run_case, run_plan
from hal.ops import CATALOGUE


class Host(hal.HostBackend):
    """The host under another name; tests give it operators of their own."""

    name = "tested"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    overrides: Mapping[str, Callable[..., Any]] = {}

    def op_overrides(self) -> Mapping[str, Callable[..., Any]]:
        return self.overrides


@pytest.fixture
def make_backend():
    """A backend on the host with the given operators and class attributes."""

    def make(overrides: Mapping[str, Callable[..., Any]] | None = None, **attributes: Any) -> Host:
        return type("Tested", (Host,), {"overrides": overrides or {}, **attributes})()

    return make


@pytest.fixture
def case_named():
    """The case of that name."""
    known = {case.name: case for case in all_cases()}

    def find(name: str) -> Case:
        return known[name]

    return find


@pytest.fixture
def run_on(make_backend):
    """Run the cases of a pattern on a backend; returns the verdict and message of each."""

    def run(backend: hal.TorchBackend, *patterns: str) -> dict[str, tuple[str, str]]:
        results = [run_case(backend, case) for case in choose(False, patterns)]
        return {result.case: (result.verdict, result.message) for result in results}

    return run


@pytest.fixture
def run_whole():
    """A run as the command makes it, of the cases of some patterns."""

    def run(backend: hal.TorchBackend, *patterns: str, seeds: int = 1):
        return run_plan(backend, Plan(choose(False, patterns), all_cases(), "chosen", seeds))

    return run


def _each_result(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Callable[..., Any]]:
    """Every operator of the catalogue with its floating results changed."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            result = function(*arguments)
            floating = isinstance(result, torch.Tensor) and result.is_floating_point()
            return change(result) if floating else result

        return wrapped

    return {name: wrap(op.default) for name, op in CATALOGUE.items()}


def _each_input(
    change: Callable[[torch.Tensor], torch.Tensor], names: tuple[str, ...]
) -> dict[str, Callable[..., Any]]:
    """The operators `names` with their floating inputs changed."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            return function(
                *(change(x) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments)
            )

        return wrapped

    return {name: wrap(CATALOGUE[name].default) for name in names}


def _to_eleven_bits(x: torch.Tensor) -> torch.Tensor:
    """float32 rounded to 11 stored bits of significand; narrower dtypes as they are."""
    if x.dtype != torch.float32:
        return x
    half = 1 << 11
    return ((x.view(torch.int32) + half) & ~((1 << 12) - 1)).view(torch.float32)


@pytest.fixture
def each_result():
    """Every operator with its results changed."""
    return _each_result


@pytest.fixture
def short_inputs():
    """Some operators with float32 inputs of eleven bits."""
    return lambda *names: _each_input(_to_eleven_bits, names)


@pytest.fixture
def flushing() -> Iterator[None]:
    """The processor's own mode in which subnormal numbers are zero."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)
