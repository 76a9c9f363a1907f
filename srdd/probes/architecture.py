"""What a layer makes of an input by its architecture, asked of a clean copy on the host."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from hal.clean_layers import CleanLayers
from hal.model_weights import ModelWeights
from hal.outputs import hidden_states
from hal.shipped_torch import torch_as_shipped
from hal.structure import LayerStack
from srdd.probes.samples import Array, to_host
from srdd.replay.arithmetic import WideArithmetic
from srdd.replay.sites import noted
from srdd.walk import LayerVisit


class HostResponse:
    """Runs single layers on the host: what level quick, which copies nothing, asks before it accuses a layer. Clean
    weights are those in the directory `checkpoint`, opened when they are needed; the model's own where None.
    """

    def __init__(self, model: nn.Module, stack: LayerStack, checkpoint: Path | None) -> None:
        self._model = model
        self._stack = stack
        self._checkpoint = checkpoint

    @cached_property
    def _layers(self) -> CleanLayers:
        weights = ModelWeights(self._model, self._stack, self._checkpoint) if self._checkpoint else None
        return CleanLayers(self._model, self._stack, weights)

    def to(self, visit: LayerVisit, stream: Array) -> Array | None:
        """What the visited layer makes of `stream`, [rows, hidden], on the host in float64; None, and a note at the
        visit, where it cannot be rebuilt there, or its code wants another dtype.
        """
        shape = visit.call.stream.shape
        output: torch.Tensor | None = None
        with noted(visit.notes, f"{visit.site}: not run on the host"), torch.no_grad():
            clean = self._layers.layer(visit.index)
            with torch_as_shipped(), WideArithmetic():
                output = hidden_states(visit.call.replay(torch.from_numpy(stream).reshape(shape), clean)).reshape(shape)
        return None if output is None else to_host(output)
