"""Matrix products, linear layers and the embedding lookup."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from hal.ops.catalogue import Arguments, Op, register
from hal.ops.precision import ACCUMULATION, FLUSH, host64
from hal.ops.sampling import SampleSpec

# Weights are drawn with variance near 1 / K, so outputs are about as large as inputs; six octaves hold
# sixty standard deviations.
_HEADROOM = 6


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix product of `a` [..., M, K] and `b` [..., K, N], leading dimensions broadcast."""
    return torch.matmul(a, b)


def bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix products of `a` [B, M, K] and `b` [B, K, N], one per batch entry."""
    return torch.bmm(a, b)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias` for x [..., K], weight [N, K], bias [N]."""
    return functional.linear(x, weight, bias)


def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows `ids` (int64, any shape, values in [0, V)) of `weight` [V, D]."""
    return functional.embedding(ids, weight)


def _matmul_reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return host64(a) @ host64(b)


def _matmul_scale(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of the products' sizes, times the growth of its rounding error with the number of terms."""
    return (_size(a) @ _size(b)) * max(1.0, math.sqrt(a.shape[-1]) / 4)


def _linear_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = host64(x) @ host64(weight).T
    return product if bias is None else product + host64(bias)


def _linear_scale(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = _matmul_scale(x, weight.T)
    return product if bias is None else product + _size(bias)


def _embedding_reference(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return host64(weight)[ids.cpu()]


def _size(x: torch.Tensor) -> torch.Tensor:
    # Matrix units may flush subnormal inputs, at the price of the smallest normal number each.
    return host64(x).abs() + FLUSH / ACCUMULATION


def _sample_matmul(spec: SampleSpec) -> Arguments:
    m, k, n = spec.pick(tiny=(2, 8, 4), odd=(3, 37, 5), large=(64, 512, 96))
    return spec.data("a", m, k, headroom=_HEADROOM), spec.projection("b", k, n, inputs=k)


def _sample_bmm(spec: SampleSpec) -> Arguments:
    batch, m, k, n = spec.pick(tiny=(2, 2, 4, 2), odd=(3, 5, 33, 7), large=(4, 64, 128, 64))
    return spec.data("a", batch, m, k, headroom=_HEADROOM), spec.projection("b", batch, k, n, inputs=k)


def _sample_linear(spec: SampleSpec) -> Arguments:
    rows, k, n = spec.pick(tiny=(2, 8, 4), odd=(3, 37, 5), large=(64, 512, 96))
    x = spec.data("x", 2, rows, k, headroom=_HEADROOM)
    return x, spec.projection("weight", n, k, inputs=k), spec.weights("bias", n)


def _sample_embedding(spec: SampleSpec) -> Arguments:
    rows, vocabulary, width = spec.pick(tiny=(2, 4, 8), odd=(3, 11, 37), large=(64, 512, 256))
    return spec.ids("ids", 2, rows, high=vocabulary), spec.data("weight", vocabulary, width)


MATMUL = register(
    Op(
        "matmul",
        "matmul(a[..., M, K], b[..., K, N]) -> [..., M, N]",
        matmul,
        _matmul_reference,
        _sample_matmul,
        error_scale=_matmul_scale,
    )
)
BMM = register(
    Op(
        "bmm",
        "bmm(a[B, M, K], b[B, K, N]) -> [B, M, N]",
        bmm,
        _matmul_reference,
        _sample_bmm,
        error_scale=_matmul_scale,
    )
)
LINEAR = register(
    Op(
        "linear",
        "linear(x[..., K], weight[N, K], bias[N] | None = None) -> [..., N]",
        linear,
        _linear_reference,
        _sample_linear,
        error_scale=_linear_scale,
    )
)
EMBEDDING = register(
    Op(
        "embedding",
        "embedding(ids[...] int64, weight[V, D]) -> [..., D]",
        embedding,
        _embedding_reference,
        _sample_embedding,
        exact=True,
    )
)
