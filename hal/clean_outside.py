"""A clean copy, on the host, of what lies outside a model's layers: embeddings, last norm, head, and their callers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import nn

from hal.calls import moved
from hal.model_weights import WeightSource
from hal.skeleton import on_meta, stripped_copy, transformers_model
from hal.structure import LayerStack, dotted, enclosing

_HOST = torch.device("cpu")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class CleanOutside:
    """`module` is a copy of `owner`, the transformers model inside the scanned one or that model itself, and `name` is
    owner's dotted name there. The copy's modules have their own names and float64 weights, clean ones as in
    CleanLayers, with two exceptions: its layers have none and are there to be stood in for, and so are look-up tables
    and matrix products, whose weights may be as large as many layers: `table` and `product` make those, and `lent`
    lends them.
    """

    def __init__(self, model: nn.Module, stack: LayerStack, weights: WeightSource | None) -> None:
        found = transformers_model(model)
        self.name = found[0] if found else ""
        self.owner: nn.Module = found[1] if found else model
        self._stack = stack
        self._weights = weights
        if found:
            self.module: nn.Module = on_meta(self.owner).eval()
        else:
            self.module = stripped_copy(self.owner, {id(layer): nn.Identity() for layer in stack.layers}).eval()
        for name, part in self._parts(""):
            self._fill(name, part)

    def product(self, name: str) -> nn.Linear:
        """The matrix product called `name`, in the model's own dtype."""
        part = copy.deepcopy(self.module.get_submodule(name))
        if not is_product(part):
            raise TypeError(f"{name} is a {type(part).__name__}, not a matrix product")
        self._fill_parameters(name, part)
        return part

    def table(self, name: str, rows: torch.Tensor | None) -> nn.Embedding:
        """The look-up table called `name`, in the model's own dtype; with `rows` given, of those rows alone, in their
        order, in float64.
        """
        part = copy.deepcopy(self.module.get_submodule(name))
        if not is_table(part):
            raise TypeError(f"{name} is a {type(part).__name__}, not a look-up table")
        weight = self._tensor(f"{name}.weight")
        chosen = weight if rows is None else weight[rows].double()
        part.weight = nn.Parameter(chosen, requires_grad=False)
        if rows is not None:
            part.padding_idx = None  # the row of that number may not be among them
        return part

    @contextmanager
    def lent(self, name: str) -> Iterator[None]:
        """Let the tables and products below the module called `name` hold their weights, in the model's own dtype,
        within the block: its code may read them without a call.
        """
        borrowers = [(inner, part) for inner, part in self._parts(name) if is_table(part) or is_product(part)]
        empty = [dict(part._parameters) for _, part in borrowers]
        try:
            for inner, part in borrowers:
                self._fill_parameters(inner, part)
            yield
        finally:
            for (_, part), parameters in zip(borrowers, empty, strict=True):
                part._parameters.update(parameters)

    def _parts(self, name: str) -> Iterator[tuple[str, nn.Module]]:
        """The module called `name` and all below it, with their names, but those of the layers."""
        for inner, part in self.module.get_submodule(name).named_modules(prefix=name):
            if not self._stack.holds(dotted(self.name, inner)):
                yield inner, part

    def _fill(self, name: str, part: nn.Module) -> None:
        computed = part._non_persistent_buffers_set
        if computed:
            self._compute_buffers(name, part)
        if not (is_table(part) or is_product(part)):
            self._fill_parameters(name, part, torch.float64)
        for leaf, buffer in list(part.named_buffers(recurse=False)):
            if leaf not in computed and buffer is not None:
                part._buffers[leaf] = moved(self._tensor(dotted(name, leaf)), _HOST, torch.float64)

    def _fill_parameters(self, name: str, part: nn.Module, dtype: torch.dtype | None = None) -> None:
        for leaf in [leaf for leaf, _ in part.named_parameters(recurse=False)]:
            value = moved(self._tensor(dotted(name, leaf)), _HOST, dtype)
            setattr(part, leaf, nn.Parameter(value, requires_grad=False))

    def _compute_buffers(self, name: str, part: nn.Module) -> None:
        """Buffers that no checkpoint has, as the class computes them when it loads a checkpoint; as the scanned model
        has them where the class leaves that open, or where casts of the model explain the difference.
        """
        held = {leaf: self._held(dotted(name, leaf)) for leaf in part._non_persistent_buffers_set}
        present = {leaf: value for leaf, value in held.items() if part._buffers.get(leaf) is not None}
        for leaf, value in present.items():
            part._buffers[leaf] = _unset(value)
        initialise = self._initialiser(name)
        if initialise is not None:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                initialise(part)
        for leaf, value in present.items():
            fresh = part._buffers.get(leaf)
            chosen = value if fresh is None or _explained(fresh, value) else fresh
            part._buffers[leaf] = moved(chosen, _HOST, torch.float64)

    def _initialiser(self, name: str) -> Callable[[nn.Module], None] | None:
        """What the model that the module called `name` belongs to, the innermost of several, initialises it with."""
        found = (getattr(self.module.get_submodule(place), "_init_weights", None) for place in enclosing(name))
        return next(filter(None, found), None)

    def _held(self, name: str) -> torch.Tensor:
        """The scanned model's own tensor, on the host."""
        owner, _, leaf = name.rpartition(".")
        value: torch.Tensor = getattr(self.owner.get_submodule(owner), leaf)
        return value.detach().to("cpu", copy=True)

    def _tensor(self, name: str) -> torch.Tensor:
        """A clean tensor in the model's dtype: the checkpoint's, or the model's own."""
        owner, _, leaf = name.rpartition(".")
        held: torch.Tensor = getattr(self.owner.get_submodule(owner), leaf)
        stored = self._weights.tensor(dotted(self.name, name)) if self._weights else None
        if stored is None or stored.shape != held.shape:
            return held.detach().to("cpu", copy=True)
        return stored.to(held.dtype)


def is_table(module: nn.Module) -> TypeGuard[nn.Embedding]:
    """Whether the module looks up rows of a table."""
    return isinstance(module, nn.Embedding)


def is_lookup(module: nn.Module) -> TypeGuard[nn.Embedding]:
    """Whether the module looks up rows of a table and does nothing else with them."""
    return isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward


def is_product(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the module is a matrix product and nothing else."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _unset(like: torch.Tensor) -> torch.Tensor:
    """A tensor of values that no computation leaves there."""
    return torch.full_like(like, torch.nan if like.is_floating_point() else torch.iinfo(torch.int32).min)


def _explained(fresh: torch.Tensor, held: torch.Tensor) -> bool:
    """Whether the buffer was left unset, or differs from the model's as rounding to a dtype and back makes it."""
    if fresh.shape != held.shape or bool((fresh == _unset(fresh)).any()):
        return True
    if not held.is_floating_point():
        return False
    if bool(fresh.isnan().any()):
        return True
    return any(torch.equal(fresh.to(dtype).to(held.dtype), held) for dtype in (held.dtype, *_DTYPES))
