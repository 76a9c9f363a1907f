"""Serving engines compute several of a model's operators by one module, and only a shard of it in each process: which
columns of such a module's result are which operator's, by the names of the model in one piece.

Recognised by class names along the method resolution order, so that a platform's own subclasses
(AscendQKVParallelLinear) count as what they extend, and no engine is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from hal.structure import dotted

# As engines name the fused module, and as models name its parts.
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


@dataclass(frozen=True)
class Part:
    """Columns `start` to `stop` of a module's result in this process: the result of the operator at `site`, of whose
    columns in the whole model `start` is number `first`.
    """

    site: str
    start: int
    stop: int
    first: int


def linear_parts(module: nn.Module, site: str) -> tuple[Part, ...] | None:
    """The parts of an engine's linear module at `site`; None when `module` is no such module."""
    kinds = _kinds(module)
    if "LinearBase" not in kinds:
        return None
    known: Any = module
    if "QKVParallelLinear" in kinds:
        return _parts(_names(site, 3), _attention_sizes(known), _attention_firsts(known))
    if "MergedColumnParallelLinear" in kinds:
        sizes = [size // known.tp_size for size in known.output_sizes]
        return _parts(_names(site, len(sizes)), sizes, [known.tp_rank * size for size in sizes])
    width = int(known.output_size)
    if "ColumnParallelLinear" in kinds and not known.gather_output:
        width = int(known.output_size_per_partition)
        return _parts([site], [width], [known.tp_rank * width])
    return _parts([site], [width], [0])  # replicated, or summed over the processes


def is_gated_activation(module: nn.Module) -> bool:
    """Whether `module` is an engine's silu(gate) * up on the two halves of its input."""
    return "SiluAndMul" in _kinds(module)


def _kinds(module: nn.Module) -> set[str]:
    return {kind.__name__ for kind in type(module).__mro__}


def _attention_sizes(module: Any) -> list[int]:
    value = int(getattr(module, "v_head_size", module.head_size))
    return [
        module.num_heads * module.head_size,
        module.num_kv_heads * module.head_size,
        module.num_kv_heads * value,
    ]


def _attention_firsts(module: Any) -> list[int]:
    query, key, value = _attention_sizes(module)
    # With more processes than key-value heads, several hold the same head.
    group = module.tp_rank // module.num_kv_head_replicas
    return [module.tp_rank * query, group * key, group * value]


def _names(site: str, count: int) -> list[str]:
    parent, _, name = site.rpartition(".")
    parts = PARTS.get(name, ())
    if len(parts) != count:
        parts = tuple(f"{name}_{index}" for index in range(count))
    return [dotted(parent, part) for part in parts]


def _parts(sites: Sequence[str], sizes: Sequence[int], firsts: Sequence[int]) -> tuple[Part, ...]:
    found, start = [], 0
    for site, size, first in zip(sites, sizes, firsts, strict=True):
        found.append(Part(site, start, start + size, int(first)))
        start += size
    return tuple(found)


def has_fused_experts(module: nn.Module) -> bool:
    """Whether `module` computes a mixture's experts in one kernel, whose products nothing outside it sees."""
    return any(kind.endswith("FusedMoE") for kind in _kinds(module))
