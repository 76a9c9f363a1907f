"""Modules that are, as a whole, one call of an operator or several: what to do with what they return."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from hal.engines.fused import Part, has_fused_experts, is_gated_activation, linear_parts
from hal.errors import HookError
from hal.outputs import hidden_states, with_hidden_states

# Models compute these by modules of their own, often without ever calling torch's function: such a module is one
# call of the operator, whatever it does inside.
MODULE_OPERATORS: Final[Mapping[str, re.Pattern[str]]] = {
    "rms_norm": re.compile(r"RMSNorm"),
    "layer_norm": re.compile(r"LayerNorm$"),
    "gelu": re.compile(r"GELU"),
}

# Containers that wrappers put around a module; a site is named as the bare model names it.
_WRAPPERS: Final = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module"})


@dataclass(frozen=True)
class OperatorCall:
    """One call of `operator`: `site` is the dotted name, below the hooked module, of the innermost module that
    makes it ("" for the hooked module itself), and `occurrence` how many calls of that operator this run of that
    module made before. Where this process computes a shard, the result's columns are numbers `first_column` and
    following of the whole model's.
    """

    operator: str
    site: str
    occurrence: int
    first_column: int = 0


Disturb = Callable[[OperatorCall, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class WholeModule:
    """A module that is one call of `operator`: its hidden states are the result, and its first argument a factor."""

    operator: str
    site: str

    @property
    def takes(self) -> OperatorCall | None:
        """The call whose factor the module's argument is."""
        return OperatorCall(self.operator, self.site, 0)

    def results(self, _args: tuple[Any, ...], output: Any, disturb: Disturb) -> Any:
        """The output with its hidden states disturbed."""
        result = disturb(OperatorCall(self.operator, self.site, 0), hidden_states(output, "submodule"))
        return with_hidden_states(output, result, "submodule")


@dataclass(frozen=True)
class FusedLinear:
    """A serving engine's linear module, each of whose `parts` is a call of linear in the model in one piece."""

    parts: tuple[Part, ...]
    operator: str = "linear"
    takes: OperatorCall | None = None  # engines have no backward pass

    def results(self, _args: tuple[Any, ...], output: Any, disturb: Disturb) -> Any:
        """The output with each part disturbed by itself."""
        before = hidden_states(output, "submodule")
        pieces = [
            disturb(OperatorCall("linear", part.site, 0, part.first), before[..., part.start : part.stop])
            for part in self.parts
        ]
        return with_hidden_states(output, torch.cat(pieces, dim=-1), "submodule")


@dataclass(frozen=True)
class GatedActivation:
    """A serving engine's silu(gate) * up in one kernel, on the two halves of its input; only silu is the operator."""

    site: str
    first_column: int
    operator: str = "silu"
    takes: OperatorCall | None = None

    def results(self, args: tuple[Any, ...], _output: Any, disturb: Disturb) -> torch.Tensor:
        """The product made again from the disturbed activation."""
        gate, up = args[0].chunk(2, dim=-1)
        product: torch.Tensor = (
            disturb(OperatorCall("silu", self.site, 0, self.first_column), functional.silu(gate)) * up
        )
        return product


Whole = WholeModule | FusedLinear | GatedActivation


def module_operator(module: nn.Module) -> str | None:
    """The operator that `module` as a whole is, by its class's name: "rms_norm" for every RMSNorm, and so on."""
    name = type(module).__name__
    return next((operator for operator, pattern in MODULE_OPERATORS.items() if pattern.search(name)), None)


def whole_modules(root: nn.Module, operators: Collection[str]) -> Iterator[tuple[nn.Module, str, Whole | None]]:
    """`root` and every module below it, with its bare name and what it is as a whole, None for what is no operator
    of `operators`. Raises HookError where products are out of reach, inside a kernel for a mixture's experts.
    """
    shards: dict[str, int] = {}  # where the columns of a module's fused linear begin, by the module's name
    for path, module in root.named_modules():
        site = bare_name(path)
        parts = linear_parts(module, site)
        if parts is not None and len(parts) == 2:
            shards[site.rpartition(".")[0]] = parts[0].first
        whole: Whole | None = None
        if parts is not None:
            whole = FusedLinear(parts)
        elif is_gated_activation(module):
            whole = GatedActivation(site, shards.get(site.rpartition(".")[0], 0))
        elif operator := module_operator(module):
            whole = WholeModule(operator, site)
        if "linear" in operators and has_fused_experts(module):
            raise HookError(
                f"the experts at '{site}' are computed in one kernel, whose products cannot be hooked: use noise of "
                "kind 'layer', or leave these layers out"
            )
        yield module, site, whole if whole is not None and whole.operator in operators else None


def bare_name(path: str) -> str:
    """`path` without the names that data-parallel, checkpointing and compiling wrappers add to it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)
