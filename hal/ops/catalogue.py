"""What an operator of the catalogue is, and how a backend offers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hal.errors import UnsupportedError, UsageError
from hal.ops.sampling import SampleSpec

FLOATING = (torch.float32, torch.bfloat16, torch.float16)

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Op:
    """One operator: its `name`, a `signature` that states shapes, the `default` implementation in plain torch for any
    device, the float64 `reference` on the host that defines the right result, a `sample` function that makes
    reproducible arguments on the host, whether it is `differentiable`, and the input `dtypes` it takes. `error_scale`,
    with the same arguments and result structure as `reference`, gives the size in float64 of the terms a result is
    made of, against which rounding is judged (see `hal.ops.precision.error_bound`); None means the result's own size.
    An `exact` operator must return the reference bit for bit. `inapplicable` maps a value range of `SampleSpec` to the
    reason why this operator has none.
    """

    name: str
    signature: str
    default: Callable[..., Any]
    reference: Callable[..., Any]
    sample: Callable[[SampleSpec], Arguments]
    differentiable: bool = True
    dtypes: tuple[torch.dtype, ...] = FLOATING
    error_scale: Callable[..., Any] | None = None
    exact: bool = False
    inapplicable: Mapping[str, str] = field(default_factory=dict)


CATALOGUE: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Add `op` to the catalogue; a second operator of the same name is a UsageError."""
    if op.name in CATALOGUE:
        raise UsageError(f"operator '{op.name}' is already in the catalogue: choose another name")
    CATALOGUE[op.name] = op
    return op


class OpTable:
    """The catalogue as one backend runs it: `table.matmul(a, b)` calls the backend's own implementation where it has
    one and the default otherwise.
    """

    def __init__(
        self, backend: str, overrides: Mapping[str, Callable[..., Any]], unsupported: Mapping[str, str]
    ) -> None:
        unknown = sorted({*overrides, *unsupported} - set(CATALOGUE))
        if unknown:
            names = ", ".join(unknown)
            raise UsageError(f"backend '{backend}' names operators that are not in the catalogue: {names}")
        self._backend = backend
        self._overrides = overrides
        self._unsupported = unsupported

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __dir__(self) -> list[str]:
        return sorted(CATALOGUE)

    def get(self, name: str) -> Callable[..., Any]:
        """The implementation of operator `name`; raises UsageError for a name outside the catalogue and
        UnsupportedError, with the backend's reason, for one it does not support.
        """
        if name not in CATALOGUE:
            raise UsageError(f"unknown operator '{name}'; the catalogue has: {', '.join(sorted(CATALOGUE))}")
        if name in self._unsupported:
            raise UnsupportedError(
                f"backend '{self._backend}' does not support operator '{name}': {self._unsupported[name]}"
            )
        return self._overrides.get(name, CATALOGUE[name].default)

    def is_native(self, name: str) -> bool:
        """Whether the backend replaces the default implementation of operator `name`."""
        return name in self._overrides
