"""What torch and safetensors say when memory runs out."""

from __future__ import annotations

import re

import torch

GIB = 2**30

# torch has an exception of its own for some devices only; the host's allocator and other devices raise RuntimeError.
_MESSAGE = re.compile(
    r"can't allocate memory|cannot allocate memory|unable to mmap|tried to allocate|os error 12", re.I
)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or the one it was raised from, says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _MESSAGE.search(str(error)):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and out_of_memory(cause)
