"""Host replay of an engine's layers against transformers' layers with the checkpoint's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hal.errors import ModelError
from hal.model_weights import ModelWeights
from hal.structure import LayerStack, find_layer_stack
from srdd.live.translate import Reference, translate
from srdd.measurements import WeightDamage
from srdd.replay.arithmetic import WIDTH
from srdd.replay.capture import ModuleCall
from srdd.replay.compare import Comparison
from srdd.replay.host import HostReplay
from srdd.walk import LayerVisit

ANGLE_ROUNDINGS = 4  # the power, its inverse, the product, and the cosine itself
# Attention kernels exponentiate to 20 units in the last place of float32, where they say (torch's exp_u20, which vLLM's
# build for hosts has too), while the replay's allowance counts WIDTH roundings of each probability.
EXPONENTIAL = 20 * 2.0**-23


class EngineReplay(HostReplay):
    """As `HostReplay`, for the layers of an engine: what they did is translated first. `whole`: this process has
    whole layers; of shards only the norms and the layer's own additions are compared. Raises ModelError for a
    checkpoint whose architecture transformers does not have, or that does not rotate its queries and keys in the
    usual way.
    """

    def __init__(self, checkpoint: Path, dtype: torch.dtype, layers: int, seed: int, whole: bool) -> None:
        model = _skeleton(checkpoint, dtype)
        stack = find_layer_stack(model)
        if len(stack) != layers:
            raise ModelError(f"{checkpoint} has {len(stack)} layers and the engine {layers}: give its own checkpoint")
        super().__init__(model, stack, ModelWeights(model, stack, checkpoint), seed)
        self._rotary_module = _rotary(model, stack)
        self._whole = whole
        if not whole:
            self.notes.append("several processes share each layer: attention and MLP were probed, not replayed")
        self._dtype = dtype
        self._reference: Reference | None = None

    @contextmanager
    def recording(self, visit: LayerVisit, excitation: str) -> Iterator[None]:
        """Record the layer's run inside the block, translate and replay it."""
        if self._reference is None:
            self._reference = self._make_reference(visit)
        first = self._own_run is None
        with super().recording(visit, excitation):
            yield
        if first and self._own_run is not None:
            self._own_run = replace(self._own_run, children=_innermost(self._own_run, self._reference))

    def weights(self, visit: LayerVisit) -> tuple[WeightDamage, ...] | None:
        """None: an engine keeps weights fused, packed and sharded, not as the checkpoint has them."""
        return None

    def finish(self, visit: LayerVisit) -> Any:
        """The worst result of each site, by the reference's names."""
        rows = super().finish(visit)
        self._reference = None
        return rows

    def _excite_own(self, visit: LayerVisit, own: ModuleCall) -> None:
        """Not done: an engine's layers add their stream up in fused kernels, inside their norms."""

    def _ask_again(self, visit: LayerVisit) -> int:
        """Not done: the calls that differ are those of the reference, and the engine has other modules."""
        return 0

    def _compare_tree(self, visit: LayerVisit, tree: ModuleCall, excitation: str) -> None:
        if self._reference is None:
            return
        for translated in translate(tree, self._reference):
            super()._compare_tree(visit, translated, excitation)

    def _judged(self, comparison: Comparison) -> Comparison | None:
        module = self._reference.module(comparison.name) if self._reference is not None else None
        if not self._whole and comparison.name and module is not None and any(True for _ in module.children()):
            return None  # attention or MLP in one: the roundings of its shards and of their sum are not drawn
        if self._reference is not None and self._reference.is_attention(comparison.name):
            wider = max(1.0, EXPONENTIAL / (WIDTH * torch.finfo(self._dtype).eps / 2))
            transfer = replace(comparison.transfer, violation=comparison.transfer.violation / wider)
            return replace(comparison, transfer=transfer)
        return comparison

    def _make_reference(self, visit: LayerVisit) -> Reference:
        positions = visit.call.positions()
        if positions is None:
            raise ModelError(f"{visit.site} was called without positions: its replay needs them")
        positions = positions.to("cpu")[None]
        probe = torch.zeros(1, positions.shape[-1], 1, dtype=self._dtype)
        rotary = self._rotary_module(probe, positions)
        return Reference(self._clean_of(visit), _engines_own(visit.call.layer, positions, rotary), self._whole)


def _engines_own(
    layer: nn.Module, positions: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cosines and sines of the engine's own table where they are those of `rotary` but for the rounding of their
    angles, which attention would show and which is nobody's fault: an angle is a product of a position and a power, a
    few roundings of float32 of a number up to the position.
    """
    tables = (getattr(module, "cos_sin_cache", None) for module in layer.modules())
    table = next((table for table in tables if isinstance(table, torch.Tensor)), None)
    if table is None:
        return rotary
    rows = table.detach().to("cpu")[positions]
    halves = [torch.cat([half, half], dim=-1).to(rotary[0].dtype) for half in rows.chunk(2, dim=-1)]
    limit = ANGLE_ROUNDINGS * torch.finfo(torch.float32).eps * (1 + positions[..., None])
    limit = limit + torch.finfo(rotary[0].dtype).eps
    same = all(
        own.shape == other.shape and bool(((own - other).double().abs() <= limit).all())
        for own, other in zip(halves, rotary, strict=True)
    )
    return (halves[0], halves[1]) if same else rotary


def _skeleton(checkpoint: Path, dtype: torch.dtype) -> nn.Module:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        config._attn_implementation = "sdpa"
        with init_empty_weights(include_buffers=False):
            model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:  # configurations raise what they like; the cause goes on inside our own
        raise ModelError(f"transformers cannot build {checkpoint} for the replay: {error}") from error
    return model.eval()


def _rotary(model: nn.Module, stack: LayerStack) -> nn.Module:
    found: list[nn.Module] = [
        module
        for name, module in model.named_modules()
        if type(module).__name__.endswith("RotaryEmbedding") and not stack.holds(name)
    ]
    if len(found) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(found)} rotary embeddings outside its layers, and the replay of an "
            "engine knows models with one: scan it with level 'quick'"
        )
    return found[0]


def _innermost(call: ModuleCall, reference: Reference) -> list[ModuleCall]:
    """The innermost calls that the reference knows: the parts to excite. Not what contains them: between them lie fused
    kernels, whose products of tiny and huge numbers would be judged by the rounding of their factors.
    """
    if call.children:
        return [part for child in call.children for part in _innermost(child, reference)]
    return [call] if translate(call, reference) else []
