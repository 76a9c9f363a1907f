"""What torch and safetensors say when memory runs out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hal.errors import HalError, ModelError, one_line

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


@contextmanager
def named_when_full(what: str, cure: str) -> Iterator[None]:
    """Turn running out of memory in the block into a ModelError: `what` did not fit, and the `cure`."""
    try:
        yield
    except HalError:
        raise
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ModelError(f"memory is full: {what} does not fit ({one_line(error)[:160]}); {cure}") from error
