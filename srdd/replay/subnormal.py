"""Whether a layer's own arithmetic keeps subnormal numbers, whose sums are exact: only a flush makes zeros of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from hal.noise import stream_key, uniform
from srdd.measurements import Subnormals
from srdd.replay.capture import ModuleCall, map_tensors, tensors_in
from srdd.replay.module import own_values, run_natively

LEAST, MOST = 2.0**-4, 2.0**-3  # of the smallest normal number: eight such numbers add up to it, and bfloat16 has them
ASKED = 2.0**-5  # of it: what is expected to be larger is no zero by rounding


def with_subnormal_results(call: ModuleCall, seed: int) -> ModuleCall:
    """The call of a module whose parts are stubs, with subnormal numbers in the odd rows of each tensor like the
    module's own that they return.
    """
    shape = tensors_in(call.output)[0].shape
    stubs = [
        replace(stub, output=map_tensors(stub.output, partial(_if_shaped, shape, seed, number)))
        for number, stub in enumerate(call.children, start=1)
    ]
    return replace(call, children=stubs)


def subnormal_rows(x: torch.Tensor, seed: int, number: int = 0) -> torch.Tensor:
    """`x` with positive subnormal numbers of its dtype in its odd rows, the draw called `number`."""
    rows = x.reshape(-1, x.shape[-1]).clone()
    share = uniform(tuple(rows[1::2].shape), seed=seed, stream=stream_key("srdd.subnormal", number))
    wide = (LEAST + (MOST - LEAST) * share.double()) * torch.finfo(x.dtype).smallest_normal
    rows[1::2] = wide.to(x.dtype)
    return rows.reshape(x.shape)


def flushes(like: torch.Tensor) -> bool:
    """Whether the device and dtype of `like` flush subnormal numbers in plain sums and products, as many do."""
    x = torch.full((2**10,), LEAST * torch.finfo(like.dtype).smallest_normal, dtype=like.dtype).to(like.device)
    return not bool(torch.stack([x + x, x * 0.5, x]).ne(0).all())


def count_flushed(call: ModuleCall, clean: nn.Module) -> Subnormals | None:
    """Of what the module of `call` made by its own arithmetic, how many values should be subnormal, as those are that
    its copy below `clean` makes on the host in the same dtype, and how many of them came back as zero. None where none
    should be, or where the arithmetic is more than sums and products, whose results IEEE 754 fixes.
    """
    native = run_natively(call, clean)
    if native is None or not native.determined:
        return None
    asked = flushed = 0
    for expected, actual in zip(native.values, own_values(call), strict=True):
        smallest = torch.finfo(actual.dtype).smallest_normal
        size = expected.double().abs()
        subnormals = (size >= ASKED * smallest) & (size < smallest)
        asked += int(subnormals.sum())
        flushed += int((subnormals & (actual == 0)).sum())
    return Subnormals(asked, flushed) if asked else None


def _if_shaped(shape: torch.Size, seed: int, number: int, tensor: torch.Tensor) -> torch.Tensor:
    alike = tensor.is_floating_point() and tensor.shape == shape
    return subnormal_rows(tensor, seed, number) if alike else tensor
