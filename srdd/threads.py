"""How many threads the host uses for a scan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hal.structure import LayerStack

# Below this many weights a layer's matrix products are too short to share: the threads spend their time waiting for
# each other, on a busy machine many times longer than the work takes.
WORTH_SHARING = 2**22


@contextmanager
def host_threads(stack: LayerStack) -> Iterator[None]:
    """Use one host thread in the block when the layers are small, and as many as before otherwise."""
    before = torch.get_num_threads()
    largest = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in stack.layers)
    if largest < WORTH_SHARING:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
