"""How far the float32 accumulation inside an operator carries its result, beyond the rounding of that result.

A sum of K terms is disturbed by u_acc * sqrt(K) of its partial sums' root mean square: the random walk of K float32
additions in an unknown order (Higham and Mary 2019 for the square root). On the way to a total, partial sums drift to
it, and walk by the terms: their mean square is a third of the total's square and half of the sum of the terms' squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hal.ops.integrity import partial_sums

LARGEST_SCORE = 1e30  # what is larger is a mask
ACCUMULATOR = 2.0**-24  # unit roundoff of the float32 in which every supported device accumulates


def accumulation_spread(func: Any, name: str, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor | None:
    """The standard deviation of the error that accumulating leaves in `value`, the result of the aten operator `func`,
    called `name`, for `args`; None for an operator that accumulates nothing.
    """
    spread = _SPREADS.get(name)
    return None if spread is None else spread(func, args, value)


def product_spread(left: torch.Tensor, right: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """That of `value`, which is `left @ right`."""
    return _walk(left.shape[-1], value, torch.matmul(left.square(), right.square()))


def _walk(terms: float, total: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """The random walk of as many additions to a `total`, when the sum of the terms' squares is `squares`."""
    return ACCUMULATOR * (terms * partial_sums(total.square(), squares)).sqrt()


def _product(_func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor:
    left, right = args[-2:]
    return product_spread(left, right, value)


def _convolution(func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor:
    """A product with the weight's rows."""
    x, weight, _bias, *form = args
    return _walk(weight[0].numel(), value, func(x.square(), weight.square(), None, *form))


def _sum(func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor | None:
    """A product with ones."""
    return _walk_of_sums(func, args, value, _terms(args, value))


def _mean(func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor | None:
    """That of the sum, over its number of terms."""
    terms = _terms(args, value)
    return _walk_of_sums(func, args, value, terms, 1 / terms)


def _running_sum(func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor | None:
    return _walk_of_sums(func, args, value, args[0].shape[args[1]])


def _walk_of_sums(
    func: Any, args: tuple[Any, ...], value: torch.Tensor, terms: float, share: float = 1.0
) -> torch.Tensor | None:
    """That of sums over as many `terms`, of which `func` returns a `share`; whole numbers are exact."""
    if not args[0].is_floating_point():
        return None
    return _walk(terms, value, share * func(args[0].square(), *args[1:]))


def _positive_terms(_func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor:
    """Of terms that are all positive, where the root sum of squares is at most their sum."""
    return ACCUMULATOR * math.sqrt(_terms(args, value)) * value.abs()


def _cancelling(_func: Any, args: tuple[Any, ...], _value: torch.Tensor) -> torch.Tensor:
    """Of a fused function that subtracts inside: its absolute error follows the input, not the small result."""
    size: torch.Tensor = args[0].abs()
    return 2 * ACCUMULATOR * size


def _softmax(_func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor:
    """Of a fused softmax: the rounding of x - max(x), which the exponential turns into a factor, the exponential's own
    last places, and the sum.
    """
    x, dim = args[0], args[1]
    below: torch.Tensor = (x - x.amax(dim, keepdim=True)).abs().nan_to_num(0.0, posinf=0.0)
    return ACCUMULATOR * (below + 2 + math.sqrt(x.shape[dim])) * value.abs()


def tie_spread(x: torch.Tensor, dim: int, value: torch.Tensor, width: float, roundoff: float) -> torch.Tensor:
    """How far near ties among the arguments `x` of a softmax carry its result `value`, as a share 1/width: each
    argument raised and all others lowered by `width` of its own roundings, and the other way round. Of many near ties
    each draw has one winner, and the device, whose rounded arguments may be equal, others. Zero in rows where no such
    reach makes a factor of e: there the draws say all there is to say.
    """
    reach = (width * roundoff * x.abs()).nan_to_num(0.0, posinf=0.0)
    high, low = x + reach, x - reach
    highest = torch.sigmoid(high - low.logsumexp(dim, keepdim=True))
    lowest = torch.exp(low - high.logsumexp(dim, keepdim=True))
    spread = torch.maximum(highest - value, value - lowest).nan_to_num(0.0, posinf=0.0) / width
    finite = torch.where(x.abs() < LARGEST_SCORE, reach, 0.0)
    return torch.where(finite.amax(dim, keepdim=True) >= 1, spread, 0.0)


def _log_softmax(_func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor:
    """That of its logarithm."""
    return ACCUMULATOR * (value.abs() + 2 + math.sqrt(args[0].shape[args[1]]))


def _transform(_func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor:
    """Of a fast Fourier transform: u_acc * log2(K) of the root sum of squares (Higham 2002, section 24.1)."""
    dims = args[1]
    terms = math.prod(args[0].shape[dim] for dim in dims)
    size: torch.Tensor = args[0].abs().square().sum(dims, keepdim=True).sqrt()
    spread: torch.Tensor = ACCUMULATOR * max(math.log2(terms), 1) * size
    return spread.expand_as(value)


def _layer_norm(_func: Any, args: tuple[Any, ...], value: torch.Tensor) -> torch.Tensor | None:
    return _layer_norm_spread(value, *args[:4]) if value.shape == args[0].shape else None


def _layer_norm_spread(
    result: torch.Tensor, x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """Error of a fused layer norm in float32: of the mean and its subtraction, as (|x| + rms(x)) rstd |weight|, and of
    a variance formed as mean(x^2) - mean(x)^2, which loses mean^2 / variance of its digits (Chan, Golub and LeVeque
    1983).
    """
    dims = tuple(range(-len(shape), 0))
    variance = x.var(dims, correction=0, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    scale = 1 if weight is None else weight.abs()
    centred = result if bias is None else result - bias
    size = x.abs() + x.square().mean(dims, keepdim=True).sqrt()
    subtraction = 4 * size * variance.rsqrt() * scale
    return ACCUMULATOR * (subtraction + centred.abs() * x.mean(dims, keepdim=True).square() / variance)


def _terms(args: tuple[Any, ...], value: torch.Tensor) -> float:
    terms: float = args[0].numel() / max(value.numel(), 1)
    return max(terms, 1.0)


_SPREADS: dict[str, Callable[[Any, tuple[Any, ...], torch.Tensor], torch.Tensor | None]] = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _product),
    **dict.fromkeys(("gelu", "mish", "softplus", "elu"), _cancelling),
    **dict.fromkeys(("var", "var_mean", "linalg_vector_norm", "norm", "std"), _positive_terms),
    "_fft_c2c": _transform,
    "_log_softmax": _log_softmax,
    "_softmax": _softmax,
    "convolution": _convolution,
    "cumsum": _running_sum,
    "mean": _mean,
    "native_layer_norm": _layer_norm,
    "sum": _sum,
}
