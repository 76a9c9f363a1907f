"""Say which fault sits where, as data: the form of `--inject` and of campaign files."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, fields
from typing import Any

from hal.errors import UsageError

KINDS = ("dead_zone", "saturation", "bias", "noise", "spike", "non_determinism")
MODES = ("amplified", "suppressed", "inconsistent", "biased", "correlated")


@dataclass(frozen=True)
class Fault:
    """One simulated fault. `layer` counts from 0; `site` is a module below the layer ("mlp.down_proj"), empty
    for the layer's own output; `operator` limits it to one operator inside that site. `magnitude` is m of each
    kind's formula. `sparsity` is the share of hidden units hit, `units` their number (which wins). `seed`
    chooses the units. `absolute` fixes a saturation's threshold at the first batch. `mode` and `factor` belong
    to non_determinism.
    """

    kind: str
    layer: int
    site: str = ""
    operator: str = ""
    magnitude: float = 0.3
    sparsity: float = 1.0
    units: int = 0
    seed: int = 0
    absolute: bool = False
    mode: str = "amplified"
    factor: float = 5.0

    def __post_init__(self) -> None:
        """Raise UsageError for a value that no fault can have."""
        if self.kind not in KINDS:
            raise UsageError(f"unknown fault kind '{self.kind}': {_suggest(self.kind, KINDS)}")
        if self.layer < 0:
            raise UsageError(f"fault layer {self.layer} is negative: layers count from 0")
        for name, value in (("magnitude", self.magnitude), ("factor", self.factor)):
            if not 0 < value < math.inf:
                raise UsageError(
                    f"fault {name} {value} must be finite and greater than 0: a fault of size 0 is no fault"
                )
        if self.kind in ("saturation", "dead_zone") and self.magnitude >= 1:
            raise UsageError(
                f"magnitude {self.magnitude} of a {self.kind} must be below 1: it is a share of max(abs(x))"
            )
        if not 0 < self.sparsity <= 1:
            raise UsageError(f"fault sparsity {self.sparsity} must be in (0, 1]: it is the share of hidden units hit")
        if self.units < 0:
            raise UsageError(f"fault units {self.units} is negative: give the number of hidden units hit, or 0")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"fault seed {self.seed} must be in [0, 2**64)")
        if self.absolute and self.kind != "saturation":
            raise UsageError(f"'absolute' does nothing to a {self.kind}: it belongs to saturation; leave it out")
        if self.mode not in MODES:
            raise UsageError(f"unknown mode '{self.mode}' of non_determinism: {_suggest(self.mode, MODES)}")
        if self.mode != MODES[0] and self.kind != "non_determinism":
            raise UsageError(f"mode '{self.mode}' does nothing to a {self.kind}: it belongs to non_determinism")


def parse_fault(text: str) -> Fault:
    """Read `KIND@LAYER[:key=value,...]`, for example `dead_zone@10:magnitude=0.3,sparsity=0.1`; raises
    UsageError that names the part at fault.
    """
    head, _, tail = text.partition(":")
    kind, at, layer = head.partition("@")
    if not at or not re.fullmatch("[0-9]{1,9}", layer):
        raise UsageError(f"fault '{text}' is not KIND@LAYER[:key=value,...], for example bias@10:magnitude=0.3")
    options: dict[str, Any] = {}
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"'{item}' in fault '{text}' is not key=value")
        if key in options:
            raise UsageError(f"'{key}' is given twice in fault '{text}'")
        options[key] = _convert(key, value, text)
    return Fault(kind=kind, layer=int(layer), **options)


_TYPES = {field.name: str(field.type) for field in fields(Fault) if field.name not in ("kind", "layer")}


def _convert(key: str, value: str, text: str) -> bool | int | float | str:
    if key not in _TYPES:
        raise UsageError(f"unknown key '{key}' in fault '{text}': {_suggest(key, tuple(_TYPES))}")
    wanted = _TYPES[key]
    if wanted == "bool":
        if value not in ("true", "false"):
            raise UsageError(f"{key}={value} in fault '{text}': give true or false")
        return value == "true"
    if wanted == "str":
        return value
    try:
        return int(value) if wanted == "int" else float(value)
    except ValueError:
        number = "a whole number" if wanted == "int" else "a number"
        raise UsageError(f"{key}={value} in fault '{text}': give {number}") from None


def _suggest(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}choose one of: {', '.join(known)}"
