"""What a layer makes of an input by its architecture, asked of a clean copy on the host."""

from __future__ import annotations

import torch
from torch import nn

from hal.clean_layers import CleanLayers
from hal.errors import HalError
from hal.memory import out_of_memory
from hal.model_weights import WeightSource
from hal.outputs import hidden_states
from hal.structure import LayerStack
from srdd.probes.samples import Array, to_host
from srdd.replay.arithmetic import WideArithmetic
from srdd.walk import LayerVisit


class HostResponse:
    """Runs single layers on the host: what level quick, which copies nothing, asks before it accuses a layer. `weights`
    are clean ones, the model's own where None.
    """

    def __init__(self, model: nn.Module, stack: LayerStack, weights: WeightSource | None) -> None:
        self._model = model
        self._stack = stack
        self._weights = weights
        self._layers: CleanLayers | None = None

    def to(self, visit: LayerVisit, stream: Array) -> Array | None:
        """What the visited layer makes of `stream`, [rows, hidden], on the host in float64; None where it cannot be
        rebuilt there, or its code wants another dtype.
        """
        own = visit.call.stream
        try:
            self._layers = self._layers or CleanLayers(self._model, self._stack, self._weights)
            clean = self._layers.layer(visit.index)
            with torch.no_grad(), WideArithmetic():
                output = visit.call.replay(torch.from_numpy(stream).double().reshape(own.shape), clean)
        except (HalError, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            if out_of_memory(error):
                raise
            return None
        return to_host(hidden_states(output).reshape(own.shape))
