"""Weight integrity: what lies in device memory against the checkpoint, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hal.model_weights import WeightSource
from hal.raw_bits import as_integers
from hal.structure import LayerStack
from srdd.measurements import WeightDamage


@dataclass(frozen=True)
class Outside:
    """A model's parameters by full name, outside its layer stack: those registered `before` it and `behind` it."""

    before: dict[str, nn.Parameter]
    behind: dict[str, nn.Parameter]


def outside(model: nn.Module, stack: LayerStack) -> Outside:
    """Split the parameters that no layer of `stack` owns by their place in the model's order; shared ones have each of
    their names.
    """
    inside = {id(parameter) for layer in stack.layers for parameter in layer.parameters()}
    before: dict[str, nn.Parameter] = {}
    behind: dict[str, nn.Parameter] = {}
    target = before
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in inside:
            target = behind
        else:
            target[name] = parameter
    return Outside(before, behind)


def damaged_weights(parameters: Mapping[str, nn.Parameter], source: WeightSource) -> Iterator[WeightDamage]:
    """Those of `parameters`, by full name, whose bits differ from what `source` has, cast to the parameter's
    dtype; one at a time. Parameters that the source does not have under their name and shape are passed over.
    """
    for name, parameter in parameters.items():
        stored = source.tensor(name)
        if stored is None or stored.shape != parameter.shape:
            continue
        damage = _compare(name, parameter.detach().to("cpu"), stored.to(parameter.dtype))
        if damage is not None:
            yield damage


def _compare(name: str, held: torch.Tensor, stored: torch.Tensor) -> WeightDamage | None:
    difference = as_integers(held).bitwise_xor(as_integers(stored)).flatten()
    places = difference.nonzero().flatten()
    if places.numel() == 0:
        return None
    first = int(places[0])
    width = 8 * held.element_size()
    patterns = [int(value) % (1 << width) for value in difference[places[:4096]]]
    flips = [pattern.bit_count() for pattern in patterns]
    return WeightDamage(
        name=name,
        elements=int(places.numel()),
        of=int(difference.numel()),
        index=tuple(int(axis) for axis in np.unravel_index(first, tuple(held.shape))),
        held=float(held.flatten()[first]),
        stored=float(stored.flatten()[first]),
        bit=patterns[0].bit_length() - 1 if max(flips) == 1 and len(set(patterns)) == 1 else -1,
        most_bits=max(flips),
    )
