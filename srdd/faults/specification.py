"""Say which fault sits where, as data: the form of `--inject` and of campaign files."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from typing import Any

from hal.errors import UsageError
from hal.models import DTYPES
from srdd.faults.rules import check

KINDS = (
    "dead_zone",
    "saturation",
    "bias",
    "noise",
    "spike",
    "non_determinism",
    "bit_flip",
    "stuck_at",
    "scale",
    "sign_flip",
    "rounding",
    "flush_subnormals",
    "wrong_constant",
)
# The way a kind acts, its default first.
MODES = {
    "non_determinism": ("amplified", "suppressed", "inconsistent", "biased", "correlated"),
    "rounding": ("truncate", "away"),
}
SCOPES = ("units", "rows", "lanes", "addresses", "elements")
KV_CACHE = "kv_cache"


@dataclass(frozen=True)
class Fault:
    """One simulated fault.

    Where: `layer` counts from 0; `site` is a module below the layer ("mlp.down_proj"), "kv_cache" for what attention
    reads back from its cache, empty for the layer's own output; with layer None, `site` is the full name of a module
    outside the layers ("lm_head"); `operator` limits it to one operator inside that site, also where a part of the
    site runs alone; `parameter` puts it on the site's weights ("weight") instead of its output.

    Which elements: `sparsity` is the share hit and `units` their number (which wins), of what `scope` names: hidden
    "units"; "rows" (tokens), "lanes" (units) or "addresses" (elements) that repeat with `period`; or single
    "elements" of a parameter. `seed` chooses them. `every` lets the fault act on each n-th call only, `rate` with that
    probability. `draws` seeds what random kinds draw; 0 is different on every run.

    What: `magnitude` is m of each kind's formula, `factor` multiplies (non_determinism, scale, wrong_constant),
    `absolute` fixes a saturation's threshold at the first batch, `mode` is the way the kind acts ("" for its first),
    `bits` the bits concerned ("14", "0-3", "mantissa", "exponent", "sign"), `value` what stuck_at is stuck at, and
    `attribute` the constant that wrong_constant changes ("" for an epsilon or a scale).
    `dtype` ties the fault to the kernels of one precision: "bfloat16" leaves float32 alone. `tokens` ties it to the
    kernels for few rows: with 1 it acts where one token of one sequence is computed alone, as when a text is generated.
    """

    kind: str
    layer: int | None
    site: str = ""
    operator: str = ""
    parameter: str = ""
    magnitude: float = 0.3
    factor: float = 5.0
    sparsity: float = 1.0
    units: int = 0
    scope: str = "units"
    period: int = 16
    seed: int = 0
    draws: int = 0
    every: int = 1
    rate: float = 1.0
    absolute: bool = False
    mode: str = ""
    bits: str = ""
    value: float = 0.0
    attribute: str = ""
    dtype: str = ""
    tokens: int = 0

    @property
    def place(self) -> str:
        """What stands behind the @ of its short form: the layer's number, or the full name of a module outside."""
        return self.site if self.layer is None else str(self.layer)

    def __post_init__(self) -> None:
        """Raise UsageError for a value that no fault can have."""
        if self.kind not in KINDS:
            raise UsageError(f"unknown fault kind '{self.kind}': {_suggest(self.kind, KINDS)}")
        if self.scope not in SCOPES:
            raise UsageError(f"unknown fault scope '{self.scope}': {_suggest(self.scope, SCOPES)}")
        if self.dtype and self.dtype not in DTYPES:
            raise UsageError(f"unknown fault dtype '{self.dtype}': {_suggest(self.dtype, tuple(DTYPES))}")
        if self.kind in MODES and self.mode and self.mode not in MODES[self.kind]:
            raise UsageError(f"unknown mode '{self.mode}' of {self.kind}: {_suggest(self.mode, MODES[self.kind])}")
        changed = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        check(self, changed)


def parse_fault(text: str) -> Fault:
    """Read `KIND@LAYER[:key=value,...]`, for example `dead_zone@10:magnitude=0.3,sparsity=0.1`, or, with the full name
    of a module outside the layers, `bias@lm_head:units=1`; raises UsageError that names the part at fault.
    """
    head, _, tail = text.partition(":")
    kind, at, place = head.partition("@")
    if not at or not re.fullmatch(r"[0-9]{1,9}|[A-Za-z_][\w.]*", place):
        raise UsageError(
            f"fault '{text}' is not KIND@LAYER[:key=value,...], for example bias@10:magnitude=0.3; for LAYER may stand "
            "a module outside the layers, for example bias@lm_head"
        )
    options: dict[str, Any] = {}
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"'{item}' in fault '{text}' is not key=value")
        if key in options:
            raise UsageError(f"'{key}' is given twice in fault '{text}'")
        options[key] = _convert(key, value, text)
    if place.isdecimal():
        return Fault(kind=kind, layer=int(place), **options)
    if "site" in options:
        raise UsageError(
            f"fault '{text}' has two places, {place} and site={options['site']}: site is for a layer's number"
        )
    return Fault(kind=kind, layer=None, site=place, **options)


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
