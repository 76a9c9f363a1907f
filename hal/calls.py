"""Capture one call of a layer, so that it can be made again with another input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hal.errors import HookError

_Place = int | str

# The keyword under which model code has handed its cache to its layers, over the years.
CACHE_ARGUMENTS = ("past_key_values", "past_key_value", "layer_past", "cache_params")


@dataclass(frozen=True)
class LayerCall:
    """The arguments of one call of `layer`. `stream` is a copy of its input residual stream: [tokens, hidden],
    [batch, tokens, hidden], or one of several streams, [batch, tokens, streams, hidden] or [streams, batch, tokens,
    hidden]; where the layer takes a separate residual (vLLM), the stream is their sum.
    """

    layer: nn.Module
    stream: torch.Tensor
    _args: tuple[Any, ...]
    _kwargs: dict[str, Any]
    _hidden: _Place
    _residual: _Place | None

    def positions(self) -> torch.Tensor | None:
        """The tokens' positions among the arguments: `positions`, `position_ids`, or an integer tensor passed first;
        None where the call has none.
        """
        for value in (self._kwargs.get("positions"), self._kwargs.get("position_ids"), *self._args[:1]):
            if isinstance(value, torch.Tensor) and not value.is_floating_point():
                return value
        return None

    def replay(self, stream: torch.Tensor, layer: nn.Module | None = None) -> Any:
        """What the layer (or a copy of it) returns when its residual stream is `stream` and every other
        argument is as captured, moved to the stream's device. A stream of another dtype than the captured one
        brings all floating-point arguments to its dtype, so that a wider replay is wide throughout. Hooks on
        the layer run as in any call.
        """
        module = self.layer if layer is None else layer
        # Of the same dtype, a float32 argument of a half-precision layer must stay float32: it is the same call.
        dtype = None if stream.dtype == self.stream.dtype else stream.dtype
        args = list(moved(self._args, stream.device, dtype))
        kwargs = dict(moved(self._kwargs, stream.device, dtype))
        _put(args, kwargs, self._hidden, stream.clone())
        if self._residual is not None:
            _put(args, kwargs, self._residual, torch.zeros_like(stream))
        return module(*args, **kwargs)

    @property
    def tokens(self) -> int:
        """How many tokens long the stream is."""
        return self.stream.shape[self._token_axis]

    @property
    def _token_axis(self) -> int:
        positions = self.positions()
        if self.stream.dim() > 3 and positions is not None:
            # The positions tell whether the several streams stand before the tokens or behind them.
            sizes = self.stream.shape[1:-1]
            return 1 + next((axis for axis, size in enumerate(sizes) if size == positions.shape[-1]), 0)
        return token_axis(self.stream)

    def takes_cache(self) -> bool:
        """Whether the layer was called with a place for a key-value cache."""
        return any(name in self._kwargs for name in CACHE_ARGUMENTS)

    @property
    def sequences(self) -> int:
        """How many sequences stand beside one another in the stream."""
        return self.stream.shape[self._token_axis - 1] if self.stream.dim() > 2 else 1

    def first_sequence(self) -> LayerCall:
        """The same call for the first of its sequences alone."""
        if self.sequences == 1:
            return self
        first = partial(_first, sequences=self.sequences, length=self.tokens)
        args, kwargs = _each((self._args, self._kwargs), first)
        stream = self.stream.narrow(self._token_axis - 1, 0, 1)
        return replace(self, stream=stream, _args=args, _kwargs=kwargs)

    def part(self, start: int, stop: int, cache: Any) -> LayerCall:
        """The same call for tokens `start` to `stop` of the stream alone, with `cache` for the key-value cache that
        holds those before: positions and masks are cut to match.
        """
        cut = partial(_cut, length=self.tokens, start=start, stop=stop)
        args, kwargs = _each((self._args, self._kwargs), cut)
        kwargs |= dict.fromkeys((name for name in CACHE_ARGUMENTS if name in kwargs), cache)
        if "use_cache" in kwargs:
            kwargs["use_cache"] = True
        stream = self.stream.narrow(self._token_axis, start, stop - start)
        return replace(self, stream=stream, _args=args, _kwargs=kwargs)


def token_axis(stream: torch.Tensor) -> int:
    """The dimension of a residual stream that counts tokens, several streams behind them."""
    return min(1, stream.dim() - 2)


def capture_call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerCall:
    """Describe a call of `layer` before it runs. The first floating-point tensor of three or more dimensions,
    or of two where there is none, is its hidden states; a tensor of the same shape passed as `residual` or
    right after it belongs to the stream too. The stream is copied because layers may write into their input.
    The model must run without a key-value cache, which would grow with each replay. Raises HookError when no
    argument can be the stream.
    """
    args, kwargs = with_cache_by_name(layer, args, kwargs)
    places = [place for place, value in _named(args, kwargs) if _is_activation(value)]
    wide = [place for place in places if _get(args, kwargs, place).dim() >= 3]
    candidates = wide or places
    if not candidates:
        raise HookError(
            f"{type(layer).__name__} was called without a floating-point activation: its residual stream is unknown"
        )
    hidden = candidates[0]
    residual = _residual_place(args, kwargs, hidden)
    stream = _get(args, kwargs, hidden)
    if residual is not None:
        stream = stream + _get(args, kwargs, residual)
    return LayerCall(layer, stream.detach().clone(), args, dict(kwargs), hidden, residual)


def with_cache_by_name(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with the key-value cache, and whatever stands behind it, by keyword: some models hand it to
    their layers by position.
    """
    names = [
        name
        for name, parameter in inspect.signature(layer.forward).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    place = next((place for place, name in enumerate(names[: len(args)]) if name in CACHE_ARGUMENTS), None)
    if place is None or len(args) > len(names):
        return args, kwargs
    return args[:place], {**dict(zip(names[place:], args[place:], strict=False)), **kwargs}


def activation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The first floating-point tensor of two or more dimensions among a call's arguments, `hidden_states` before all
    others; None where there is none.
    """
    return next((value for _, value in _named(args, kwargs) if _is_activation(value)), None)


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[_Place, Any]]:
    ordered: list[tuple[_Place, Any]] = []
    if "hidden_states" in kwargs:
        ordered.append(("hidden_states", kwargs["hidden_states"]))
    ordered.extend(enumerate(args))
    ordered.extend((name, value) for name, value in kwargs.items() if name != "hidden_states")
    return ordered


def _is_activation(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() >= 2


def _residual_place(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: _Place) -> _Place | None:
    if _same_shape(kwargs.get("residual"), _get(args, kwargs, hidden)):
        return "residual"
    # vLLM calls layers as (positions, hidden_states, residual).
    follower = hidden + 1 if isinstance(hidden, int) else None
    first_is_positions = bool(args) and isinstance(args[0], torch.Tensor) and not args[0].is_floating_point()
    if first_is_positions and follower is not None and follower < len(args):
        return follower if _same_shape(args[follower], args[follower - 1]) else None
    return None


def _same_shape(value: Any, stream: torch.Tensor) -> bool:
    return _is_activation(value) and value.shape == stream.shape


def _get(args: tuple[Any, ...], kwargs: dict[str, Any], place: _Place) -> Any:
    return kwargs[place] if isinstance(place, str) else args[place]


def _put(args: list[Any], kwargs: dict[str, Any], place: _Place, value: torch.Tensor) -> None:
    if isinstance(place, str):
        kwargs[place] = value
    else:
        args[place] = value


def _each(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Nested arguments with `function` applied to each tensor."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if type(value) is dict:
        return {key: _each(item, function) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_each(item, function) for item in value)
    return value


def _first(x: torch.Tensor, sequences: int, length: int) -> torch.Tensor:
    """The first of several sequences alone where the first dimension counts those, or, as that of ALiBi's slopes does,
    [sequences * heads, 1, tokens], their heads.
    """
    heads = x.dim() == 3 and x.shape[0] % sequences == 0 and x.shape[0] != length
    counted = heads or (x.dim() > 1 and x.shape[0] == sequences)
    return x[: x.shape[0] // sequences] if counted else x


def _cut(x: torch.Tensor, length: int, start: int, stop: int) -> torch.Tensor:
    """The tensor with the token dimension cut: the last two of a mask, [batch, heads, queries, keys] or without heads,
    the last but one of activations and rotations, the last of positions.
    """
    dimensions = 4 if x.is_floating_point() else 3  # of which activations have three
    if x.dim() >= dimensions and x.shape[-1] == x.shape[-2] == length:
        return x[..., start:stop, :stop]
    if (x.is_floating_point() or x.is_complex()) and x.dim() >= 2 and x.shape[-2] == length:
        return x[..., start:stop, :]
    return x[..., start:stop] if x.dim() and x.shape[-1] == length else x


def moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Nested arguments or results with their tensors on `device`, the floating-point ones in `dtype` unless it is
    None; anything else, a key-value cache for example, is passed on as it is.
    """
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device, dtype) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(moved(item, device, dtype) for item in value)
    return value
