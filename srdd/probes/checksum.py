"""Checksums of matrix products, on the device: a row of a product sums to what its factors' sums say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hal.ops.integrity import matmul_checksum
from srdd.measurements import Checksum

# In standard deviations of the rounding error: with 10**8 rows in a scan, one alarm in 10**7 scans.
SIGMAS = 8.0


@contextmanager
def watch_products(layer: nn.Module, site: str) -> Iterator[list[Checksum]]:
    """Check every product of a linear module of `layer` during the block; the list holds one entry a call, with the
    module's name below `site` and its worst row's residual over the bound.
    """
    found: list[Checksum] = []

    def check(name: str) -> Any:
        def hook(module: nn.Linear, args: tuple[Any, ...], output: torch.Tensor) -> None:
            found.append(_worst_row(f"{site}.{name}", module, args[0], output))

        return hook

    with ExitStack() as handles:
        for name, module in layer.named_modules():
            if type(module) is nn.Linear and name:
                handles.callback(module.register_forward_hook(check(name)).remove)
        yield found


def _worst_row(site: str, module: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> Checksum:
    if not y.numel():  # an expert to which no token was routed
        return Checksum(site, 0.0)
    checked = matmul_checksum(x, module.weight, y, module.bias, SIGMAS)
    share = (checked.residual.abs() / checked.bound.clamp_min(torch.finfo(torch.float32).tiny)).max()
    residual = float(share.nan_to_num(nan=1e12, posinf=1e12).clamp(max=1e12))
    return Checksum(site, residual, bool(share.isfinite()))
