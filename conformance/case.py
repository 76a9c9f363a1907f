"""What a case is, and what it gets to work with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from conformance.evidence import Evidence
from hal.backend import TorchBackend


@dataclass(frozen=True)
class Context:
    """The backend under test, and the seed of this run of the case."""

    backend: TorchBackend
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Where the backend computes."""
        return self.backend.device

    def to_device(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments with every tensor copied to the device."""
        return [value.to(self.device) if isinstance(value, torch.Tensor) else value for value in arguments]

    def call(self, operator: str, *arguments: Any) -> Any:
        """The catalogue's `operator` as the backend runs it, on host arguments copied to the device."""
        return self.backend.ops.get(operator)(*self.to_device(arguments))


@dataclass(frozen=True)
class Case:
    """One thing that every backend must do alike.

    `name` is a path, FAMILY/SUBJECT/…; `subject` is the operator or topic in it, and `dtype` the floating dtype of
    the case or None. `check` does the work and returns the evidence, or raises `Mismatch`. A `seeded` case is run
    for several seeds in a full run. `quick` cases make up the quick run. `purpose` says in one line what must hold.
    """

    name: str
    subject: str
    check: Callable[[Context], Evidence]
    purpose: str
    dtype: torch.dtype | None = None
    quick: bool = True
    seeded: bool = False
    operators: tuple[str, ...] = field(default=())

    @property
    def family(self) -> str:
        """The first part of the name."""
        return self.name.partition("/")[0]
