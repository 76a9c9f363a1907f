"""How many forward passes a scan of the device takes, beside the earlier procedure of 11 for each layer.

The earlier procedure judges one layer at a time and runs the whole model for every number it needs: 11 passes a layer,
308 at 28 layers. Its documents give the sum; the division here is ours: one reference, four repeats (instability),
three random perturbations of the layer's input (gain), three offsets (minimum and maximum gain). Both are counted the
same way, by the rows of which the layers' innermost modules really computed something, over those of one pass. Host
replay runs on the host's copies and adds none; its time is the difference between the two levels. Exit code 1 when the
earlier procedure takes less than `--least` times the passes of the full scan.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from scan_memory import network
from torch import nn

import srdd
from hal.outputs import hidden_states
from hal.structure import LayerStack, find_layer_stack
from srdd.batch import pack

REPEATS, PERTURBATIONS, OFFSETS = 4, 3, 3


@dataclass(frozen=True)
class Cost:
    forwards: float
    seconds: float


def main() -> int:
    options = _parser().parse_args()
    torch.set_num_threads(1)
    model = network(options.layers, options.hidden)
    stack = find_layer_stack(model)
    ids = pack(None, [], model)
    runs: dict[str, Callable[[], Any]] = {
        "earlier procedure": lambda: earlier_procedure(model, stack, ids),
        "scan, quick": lambda: srdd.scan(model, level="quick"),
        "scan, full": lambda: srdd.scan(model, level="full"),
    }
    with torch.no_grad():
        costs = {name: _cost(stack, run, model, ids) for name, run in runs.items()}
    before = costs["earlier procedure"]
    print(f"{options.layers} layers x {options.hidden} units, {ids.numel()} tokens, float32, one thread")
    print(f"{'':<18} {'forwards':>9} {'fewer':>8} {'seconds':>9} {'faster':>8}")
    for name, cost in costs.items():
        fewer, faster = before.forwards / cost.forwards, before.seconds / cost.seconds
        print(f"{name:<18} {cost.forwards:>9.2f} {fewer:>7.1f}x {cost.seconds:>9.1f} {faster:>7.2f}x")
    replay = costs["scan, full"].seconds - costs["scan, quick"].seconds
    print(f"of the full scan, host replay and its device runs: {replay:.1f} s")
    return int(before.forwards / costs["scan, full"].forwards < options.least)


def earlier_procedure(model: nn.Module, stack: LayerStack, ids: torch.Tensor) -> list[dict[str, float]]:
    """The documents' statistics of each layer, every response from a pass of the whole model."""
    generator = torch.Generator().manual_seed(0)
    return [_statistics(model, layer, ids, generator) for layer in stack.layers]


def _statistics(model: nn.Module, layer: nn.Module, ids: torch.Tensor, generator: torch.Generator) -> dict[str, float]:
    def respond(change: torch.Tensor | float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        return _whole_pass(model, layer, ids, change)

    stream, output = respond()
    std = float(stream.std())
    repeats = [respond()[1] for _ in range(REPEATS)]
    noises = [0.1 * std * torch.randn(stream.shape, generator=generator) for _ in range(PERTURBATIONS)]
    gains = [float((respond(noise)[1] - output).std() / noise.std()) for noise in noises]
    offsets = [50 * std * sign for sign in (1, -1, 1)[:OFFSETS]]
    shifts = torch.stack([(respond(offset)[1] - output) / offset for offset in offsets])
    centred = output - output.mean()
    return {
        "instability": max(float((repeat - output).std()) for repeat in repeats),
        "gain": sum(gains) / len(gains),
        "lowest": float(shifts.flatten().quantile(0.001)),
        "highest": float(shifts.flatten().quantile(0.999)),
        "kurtosis": float(centred.pow(4).mean() / centred.pow(2).mean() ** 2 - 3),
    }


def _whole_pass(
    model: nn.Module, layer: nn.Module, ids: torch.Tensor, change: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's input, and its output when `change` is added to that input, from one pass of the model."""
    seen: list[torch.Tensor] = []

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0].clone())
        return (args[0] + change, *args[1:])

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(hidden_states(output).clone())

    handles = [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0], seen[1]


def _cost(stack: LayerStack, run: Callable[[], Any], model: nn.Module, ids: torch.Tensor) -> Cost:
    with _counted(stack) as calls:
        model(ids, use_cache=False)
        one_pass = calls[0]
    with _counted(stack) as calls:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
    return Cost(calls[0] / one_pass, seconds)


@contextmanager
def _counted(stack: LayerStack) -> Iterator[list[int]]:
    """How many rows the innermost modules with weights inside the layers compute in the block: a pass over a few
    tokens is not a whole one, and a module whose forward is another returns what it is told to.
    """
    rows = [0]

    def count(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if "forward" not in vars(module):
            rows[0] += args[0].shape[:-1].numel()

    innermost = [
        module
        for layer in stack.layers
        for module in layer.modules()
        if not any(True for _ in module.children()) and any(True for _ in module.parameters())
    ]
    handles = [module.register_forward_pre_hook(count) for module in innermost]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28, help="depth of the network (28)")
    parser.add_argument("--hidden", type=int, default=256, help="width of the stream, a multiple of 64 (256)")
    parser.add_argument("--least", type=float, default=20.0, help="how many times fewer passes are asked for (20)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
