"""Hooks on a module that runs on the device: they see, they change, they count, and they leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

from conformance.case import Case, Context
from conformance.evidence import Evidence, require
from hal import noise
from hal.hooks import Hooks
from hal.ops.precision import ACCUMULATION


class _Block(nn.Module):
    """One linear layer and a softmax, with weights that are the same bits everywhere."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.down = nn.Linear(16, 16, bias=False)
        self.down.weight = nn.Parameter(noise.normal((16, 16), seed=seed, device="cpu") / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + functional.softmax(self.down(x), dim=-1)


def cases() -> Iterator[Case]:
    """One case for each kind of hook."""
    for name, purpose, check in _RULES:
        yield Case(f"hooks/{name}", "hooks", check, purpose, dtype=torch.float32)


def _network(context: Context) -> tuple[nn.Sequential, torch.Tensor]:
    network = nn.Sequential(_Block(1), _Block(2), _Block(3)).to(context.device)
    return network, noise.normal((2, 5, 16), seed=4, device="cpu").to(context.device)


@torch.no_grad()
def _observe(context: Context) -> Evidence:
    network, x = _network(context)
    seen: list[torch.Tensor] = []
    plain = network(x)
    with Hooks(network) as hooks:
        hooks.observe("1", seen.append)
        observed = network(x)
        network(x)
    require(hooks.counts["1"] == 2, f"an observer ran {hooks.counts['1']} times in 2 passes")
    network(x)
    require(len(seen) == 2, f"a removed observer was called again ({len(seen)} calls)")
    evidence = Evidence()
    evidence.same("the observed pass", observed, plain)
    evidence.same("what it saw", seen[0], network[1](network[0](x)))
    return evidence


@torch.no_grad()
def _transform(context: Context) -> Evidence:
    """A layer's output is replaced by exact noise added to it: the rest of the pass goes on from there."""
    network, x = _network(context)
    ops = context.backend.ops
    before = network(x)
    with Hooks(network) as hooks:
        hooks.transform("1", lambda h: ops.relative_noise(h, 0.05, 17))
        changed = network(x)
    middle = ops.relative_noise(network[1](network[0](x)), 0.05, 17)
    evidence = Evidence()
    evidence.same("the transformed pass", changed, network[2](middle))
    evidence.same("afterwards", network(x), before)
    require(not torch.equal(changed, before), "a transform changed nothing")
    return evidence


@torch.no_grad()
def _operator(context: Context) -> Evidence:
    """The operators inside one module are reached, and only they."""
    network, x = _network(context)
    counts: dict[str, int] = {}
    with Hooks(network) as hooks:
        for operator in ("linear", "softmax"):
            hooks.transform_operator("1", operator, lambda result: result * 2)
        changed = network(x)
        counts = dict(hooks.counts)
    require(counts == {"1:linear": 1, "1:softmax": 1}, f"operators were hit {counts}, expected once each")
    inner = network[0](x)
    weight = network.get_parameter("1.down.weight")
    expected = network[2](inner + 2 * functional.softmax(2 * functional.linear(inner, weight), dim=-1)).cpu()
    evidence = Evidence()
    # The same operators in the same order: only a fused kernel may round differently.
    evidence.within("the transformed pass", changed, expected.double(), expected.double().abs() * 4 * ACCUMULATION)
    return evidence


def _exception(context: Context) -> Evidence:
    """After an exception inside the block the module is as it was."""
    network, x = _network(context)
    before = network(x).detach()

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    try:
        with Hooks(network) as hooks:
            hooks.transform("0", fail)
            network(x)
    except ZeroDivisionError:
        pass
    evidence = Evidence()
    evidence.same("afterwards", network(x).detach(), before)
    return evidence


_RULES: tuple[tuple[str, str, Callable[[Context], Evidence]], ...] = (
    ("observe", "an observer sees what the module returns and changes nothing", _observe),
    ("transform", "a transform replaces a layer's output and is gone afterwards", _transform),
    ("operator", "operators inside one module are reached, counted, and no others", _operator),
    ("exception", "an exception leaves no hook behind", _exception),
)
