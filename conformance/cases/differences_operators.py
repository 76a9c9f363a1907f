"""How devices are known to define operators differently: forms, masks, ties, targets, and what runs on the host."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from conformance.case import Context
from conformance.evidence import Evidence, Mismatch, require
from hal import noise
from hal.errors import HalError, UsageError
from hal.ops import CATALOGUE, error_bound

_STANDARD_ERROR = 2
_FELL_BACK = re.compile(r"fall\w* ?back|not currently supported on the", re.IGNORECASE)

# Operators that some device's library lacks and runs on the host instead.
RARE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "logcumsumexp": lambda x: torch.logcumsumexp(x, 0),
    "copysign": lambda x: torch.copysign(x, -x),
    "fmax": lambda x: torch.fmax(x, 1 - x),
    "heaviside": lambda x: torch.heaviside(x - 0.5, x),
    "huber_loss": lambda x: functional.huber_loss(x, 1 - x),
    "histc": lambda x: torch.histc(x, 4, 0.0, 1.0),
    "nextafter": lambda x: torch.nextafter(x, x + 1),
    "frexp": lambda x: torch.frexp(x).mantissa,
}


def gelu_form(context: Context) -> Evidence:
    """`gelu` is the exact form unless the tanh form is asked for: the two are up to 5e-4 apart."""
    x = torch.linspace(-4, 4, 801)
    exact, tanh = CATALOGUE["gelu"].reference(x), CATALOGUE["gelu_tanh"].reference(x)
    for name, own, other in (("gelu", exact, tanh), ("gelu_tanh", tanh, exact)):
        result = context.call(name, x).cpu().double()
        mine, others = float((result - own).abs().max()), float((result - other).abs().max())
        form = "tanh" if name == "gelu" else "exact"
        require(mine < others, f"{name} computes the {form} form: {mine:.2g} from its own, {others:.2g} from that one")
    return Evidence()


def attention_masks(context: Context) -> Evidence:
    """Every kind of mask, causal attention of fewer queries than keys, and grouped heads mean the same everywhere."""
    q = noise.normal((2, 6, 5, 32), seed=1, device="cpu")
    k, v = noise.normal((2, 2, 2, 7, 32), seed=2, device="cpu")
    mask = noise.integers((2, 1, 5, 7), 0, 4, seed=3, device="cpu") > 0
    mask[..., 0] = True
    evidence = Evidence()
    for name, options in {
        "no mask": (None, False),
        "boolean mask": (mask, False),
        "causal, fewer queries than keys": (None, True),
        "boolean mask and causal": (mask, True),
    }.items():
        arguments = (q, k, v, *options)
        _judge(evidence, f"catalogue, {name}", context.call("attention", *arguments), arguments)
    wide = (k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
    call: Callable[..., torch.Tensor] = functional.scaled_dot_product_attention
    bias = torch.where(mask, 0.0, -math.inf)
    device = context.device
    moved, moved_wide = [t.to(device) for t in (q, k, v)], [t.to(device) for t in (q, *wide)]
    _judge(evidence, "torch, boolean mask", call(*moved_wide, attn_mask=mask.to(device)), (q, k, v, mask))
    _judge(evidence, "torch, float mask", call(*moved_wide, attn_mask=bias.to(device)), (q, k, v, mask))
    _judge(evidence, "torch, grouped heads", call(*moved, enable_gqa=True), (q, k, v))
    square = [t.to(device) for t in (q, wide[0][:, :, :5], wide[1][:, :, :5])]
    reference = (q, k[:, :, :5], v[:, :, :5], None, True)
    _judge(evidence, "torch, causal", call(*square, is_causal=True), reference)
    _judge(evidence, "torch, odd head size", *_odd_head(context, q, k, v))
    evidence.facts["unequal heads without enable_gqa"] = _unequal_heads(moved, call)
    return evidence


def _odd_head(
    context: Context, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    short = tuple(t[..., :13].contiguous() for t in (q[:, :2], k, v))
    q_, k_, v_ = (t.to(context.device) for t in short)
    return functional.scaled_dot_product_attention(q_, k_, v_), short


def _unequal_heads(tensors: list[torch.Tensor], call: Callable[..., torch.Tensor]) -> str:
    """Whether the device takes fewer key-value heads without being told that they are grouped."""
    try:
        call(*tensors)
    except (RuntimeError, ValueError):
        return "refused"
    return "accepted"


def _judge(evidence: Evidence, part: str, result: torch.Tensor, arguments: tuple[object, ...]) -> None:
    op = CATALOGUE["attention"]
    reference = op.reference(*arguments)
    evidence.within(part, result, reference, error_bound(op, arguments, torch.float32, (reference,))[0])


def ties(context: Context) -> Evidence:
    """Among equal values a device may choose as it likes: the chosen values, not their places, have to agree, and
    every place must hold its value. Bin edges and repeated values are the catalogue's, exact.
    """
    x = torch.tensor([[3.0, 1.0, 3.0, 2.0, 3.0, 2.0], [0.0, -0.0, 0.0, 1.0, 1.0, -1.0]])
    values, places = torch.topk(x.to(context.device), 4)
    evidence = Evidence()
    evidence.equal("values of topk", values, torch.topk(x, 4).values)
    evidence.equal("what lies at its places", x.gather(1, places.cpu()), values.cpu())
    require(all(len(set(row)) == 4 for row in places.tolist()), f"topk names one place twice: {places.tolist()}")
    edges = (-1.0, 0.0, 0.5, 1.0, 2.0, 3.0)
    points = torch.tensor([-1.0, 0.0, -0.0, 0.5, 1.0, 2.0, 3.0, math.nan, math.inf, 0.49999997])
    evidence.equal("bin edges", context.call("histogram", points, edges), torch.tensor([1, 3, 1, 1, 2]))
    repeats = context.call("multiplicity", torch.tensor([0.0, -0.0, 2.0, 2.0, math.nan, 7.0]), 2)
    evidence.equal("zeros of both signs are one value", repeats.counts, torch.tensor([2, 2]))
    evidence.facts["topk takes the first of equals"] = str(places.cpu().tolist() == torch.topk(x, 4).indices.tolist())
    evidence.facts["histc on edges"] = _recorded(lambda t: torch.histc(t, 4, 0.0, 4.0), torch.arange(5.0), context)
    evidence.facts["unique of 0 and -0"] = _recorded(torch.unique, torch.tensor([0.0, -0.0]), context)
    evidence.facts["nonzero of NaN"] = _recorded(lambda t: t.nonzero().view(-1), torch.tensor([math.nan, 0.0]), context)
    return evidence


def targets(context: Context) -> Evidence:
    """Targets are checked before the device sees them: it may return a number for one that is out of range."""
    logits = noise.normal((6, 11), seed=8, device="cpu")
    good = torch.tensor([0, 10, 3, -100, 5, 5])
    evidence = Evidence()
    reference = CATALOGUE["cross_entropy"].reference(logits, good)
    allowance = error_bound(CATALOGUE["cross_entropy"], (logits, good), torch.float32, (reference,))[0]
    evidence.within("loss", context.call("cross_entropy", logits, good), reference, allowance)
    for wrong in (11, -1, 1 << 40):
        try:
            value = context.call("cross_entropy", logits, torch.where(good == 3, wrong, good))
        except UsageError:
            continue
        raise Mismatch(f"cross_entropy returned {value.tolist()} for target {wrong} of a vocabulary of 11")
    return evidence


def host_fallback(context: Context) -> Evidence:
    """An operator without a kernel of the device's raises; it never runs on the host unseen."""
    x = torch.tensor([0.25, 0.5, 0.75], device=context.device)
    evidence = Evidence()
    for name, work in RARE.items():
        with _listening() as heard:
            try:
                result = work(x)
                require(result.device == x.device, f"{name} of a tensor on {x.device} came back on {result.device}")
                evidence.facts[name] = "runs"
            except (RuntimeError, NotImplementedError):
                evidence.facts[name] = "refused"
        spoken = next((line for line in heard if _FELL_BACK.search(line)), None)
        require(spoken is None, f"{name} ran on the host: {spoken}")
    return evidence


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """The lines of every warning in the block, after it: Python's, and those that libraries write to standard error."""
    heard: list[str] = []
    sys.stderr.flush()
    terminal = os.dup(_STANDARD_ERROR)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        os.dup2(file.fileno(), _STANDARD_ERROR)
        try:
            yield heard
        finally:
            sys.stderr.flush()
            os.dup2(terminal, _STANDARD_ERROR)
            os.close(terminal)
            file.seek(0)
            heard += file.read().decode(errors="replace").splitlines()
            heard += [" ".join(str(item.message).split()) for item in caught]


def _recorded(work: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, context: Context) -> str:
    try:
        return str(work(x.to(context.device)).cpu().tolist())
    except HalError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        return f"refused ({type(error).__name__})"
