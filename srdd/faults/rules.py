"""What a fault's values must obey, each broken rule with its message."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from hal.errors import UsageError

if TYPE_CHECKING:
    from srdd.faults.specification import Fault

# Options that mean something to some kinds only; any kind takes the others.
_KINDS_OF = {
    "absolute": ("saturation",),
    "mode": ("non_determinism", "rounding"),
    "factor": ("non_determinism", "scale", "wrong_constant"),
    "bits": ("bit_flip", "stuck_at", "rounding"),
    "value": ("stuck_at",),
    "attribute": ("wrong_constant",),
    "draws": ("noise", "spike", "non_determinism"),
}
_MAGNITUDE = ("dead_zone", "saturation", "bias", "noise", "spike")
# A constant of a module is one number that is there on every call: none of these can be said of it.
_NOT_OF_CONSTANTS = (
    "operator",
    "parameter",
    "sparsity",
    "units",
    "scope",
    "period",
    "seed",
    "every",
    "rate",
    "dtype",
    "tokens",
)
_NAMED_BITS = ("mantissa", "exponent", "sign", "any")


def check(fault: Fault, changed: Collection[str]) -> None:
    """Raise UsageError for a value out of its range, or for one of the options `changed` from its default that does
    nothing to this kind.
    """
    _check_numbers(fault)
    _check_belonging(fault, changed)
    _check_bits(fault)
    _check_place(fault)


def _check_numbers(fault: Fault) -> None:
    if fault.layer is not None and fault.layer < 0:
        raise UsageError(f"fault layer {fault.layer} is negative: layers count from 0")
    for name, value in (("magnitude", fault.magnitude), ("factor", fault.factor)):
        if not 0 < value < math.inf:
            raise UsageError(f"fault {name} {value} must be finite and greater than 0: a fault of size 0 is no fault")
    if fault.kind in ("saturation", "dead_zone") and fault.magnitude >= 1:
        raise UsageError(f"magnitude {fault.magnitude} of a {fault.kind} must be below 1: it is a share of max(abs(x))")
    if not 0 < fault.sparsity <= 1:
        raise UsageError(f"fault sparsity {fault.sparsity} must be in (0, 1]: it is the share of hidden units hit")
    if fault.units < 0:
        raise UsageError(f"fault units {fault.units} is negative: give the number of hidden units hit, or 0")
    if fault.period < 2:
        raise UsageError(f"fault period {fault.period} must be 2 or more: what repeats after 1 is everything")
    if fault.every < 1:
        raise UsageError(f"fault every={fault.every} must be 1 or more: 3 acts on each third call")
    if not 0 < fault.rate <= 1:
        raise UsageError(f"fault rate {fault.rate} must be in (0, 1]: it is the probability to act on a call")
    if fault.tokens < 0:
        raise UsageError(f"fault tokens {fault.tokens} is negative: give the most tokens that it acts on at once, or 0")
    for name, seed in (("seed", fault.seed), ("draws", fault.draws)):
        if not 0 <= seed < 1 << 64:
            raise UsageError(f"fault {name} {seed} must be in [0, 2**64)")


def _check_belonging(fault: Fault, changed: Collection[str]) -> None:
    for option, kinds in _KINDS_OF.items():
        random_trigger = option == "draws" and fault.rate < 1
        if option in changed and fault.kind not in kinds and not random_trigger:
            owners = " and ".join(kinds)
            raise UsageError(f"'{option}' does nothing to a {fault.kind}: it belongs to {owners}; leave it out")
    if "magnitude" in changed and fault.kind not in _MAGNITUDE:
        raise UsageError(f"'magnitude' does nothing to a {fault.kind}: it belongs to {', '.join(_MAGNITUDE)}")
    if fault.kind == "wrong_constant":
        odd = [option for option in _NOT_OF_CONSTANTS if option in changed]
        if odd:
            raise UsageError(f"'{odd[0]}' does nothing to a wrong_constant: it is one number of a module; leave it out")


def _check_bits(fault: Fault) -> None:
    if fault.bits and fault.bits not in _NAMED_BITS and not re.fullmatch(r"\d{1,2}(-\d{1,2})?", fault.bits):
        raise UsageError(
            f"fault bits '{fault.bits}': give a bit (14), a range (0-3) or one of {', '.join(_NAMED_BITS)}"
        )
    if fault.kind == "stuck_at" and fault.bits and fault.value not in (0, 1):
        raise UsageError(f"value {fault.value} of a stuck bit must be 0 or 1")
    if fault.kind == "rounding" and fault.bits and not re.fullmatch(r"0(-\d{1,2})?", fault.bits):
        raise UsageError(f"bits '{fault.bits}' of a rounding must start at 0: they are the low bits that are lost")


def _check_place(fault: Fault) -> None:
    if fault.layer is None and fault.site in ("", "kv_cache"):
        raise UsageError(
            f"a fault without a layer needs as its site the full name of a module outside them, not '{fault.site}'"
        )
    if fault.parameter and (fault.operator or fault.every > 1 or fault.rate < 1 or fault.tokens):
        raise UsageError(
            "a fault on a parameter has neither operator, every, rate nor tokens: the weight is always there"
        )
    if fault.scope == "elements" and not (fault.parameter and fault.units):
        raise UsageError("scope 'elements' is for a parameter: give parameter=weight and units=N, how many elements")
    if fault.scope in ("rows", "lanes", "addresses") and fault.sparsity == 1 and not fault.units:
        raise UsageError(
            f"scope '{fault.scope}' with sparsity 1 hits everything: give units=N of each {fault.period}, or a share"
        )
    if fault.site == "kv_cache" and (fault.operator or fault.parameter or fault.tokens):
        raise UsageError("the site kv_cache has neither operators nor parameters nor tokens: leave them out")
