"""A whole small language model, and each of its layers by itself: the bundled one, in every dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from conformance.case import Case, Context
from conformance.evidence import Evidence, digest_tensors, require
from conformance.formats import short
from hal import noise
from hal.backend import TorchBackend
from hal.bundled import model_dir
from hal.bundled.arithmetic import problems
from hal.bundled.evaluate import accuracy
from hal.models import DTYPES, load_model
from hal.outputs import hidden_states, with_hidden_states
from hal.registry import HOST, get_backend
from hal.structure import find_layer_stack

Result = TypeVar("Result")

PROBLEMS = 48
_DRAWS = 5
_PROMPTS = ("What is 17+25?", "Compute 9*8.", "The file is opened for reading and the lines are returned.")


def cases() -> Iterator[Case]:
    """Layers, logits and gradients in each dtype, and the accuracy at the task."""
    for name, dtype in DTYPES.items():
        quick = name != "float16"
        for family, subject, purpose, check in _RULES:
            yield Case(
                f"{family}/{subject}/{name}",
                subject,
                functools.partial(check, dtype),
                purpose,
                dtype=dtype,
                quick=quick,
                operators=("linear", "attention", "rms_norm", "softmax"),
            )
    yield Case(
        "model/accuracy/float32",
        "accuracy",
        _accuracy,
        "the model is as good at its task as on the host",
        dtype=torch.float32,
        quick=False,
    )


@dataclass(frozen=True)
class _Host:
    """The model on the host: in float64 with the weights of one dtype, in that dtype itself, what to feed it, and for
    each layer its input in that dtype, its output in float64, and in the dtype.
    """

    wide: Any
    narrow: Any
    ids: torch.Tensor
    inputs: tuple[torch.Tensor, ...]
    expected: tuple[torch.Tensor, ...] = ()
    peers: tuple[torch.Tensor, ...] = ()


@functools.lru_cache(maxsize=1)
def _host(dtype: torch.dtype) -> _Host:
    host = get_backend(HOST)
    loaded = load_model(model_dir(), host, short(dtype))
    tokenizer: Any = loaded.tokenizer
    tokens = [token for text in _PROMPTS for token in tokenizer(text)["input_ids"]]
    length = len(tokens) // 2
    ids = torch.tensor(tokens[: 2 * length]).view(2, length)
    wide = load_model(model_dir(), host, short(dtype)).model.double()
    caught: list[torch.Tensor] = []
    with torch.no_grad(), ExitStack() as handles:
        for layer in find_layer_stack(wide).layers:
            hook = layer.register_forward_pre_hook(lambda _module, args: caught.append(args[0].to(dtype)))
            handles.callback(hook.remove)
        _logits(wide, ids)
    bare = _Host(wide, loaded.model, ids, tuple(caught))
    return replace(
        bare,
        expected=tuple(_layer_outputs(wide, bare, torch.device("cpu"), torch.float64)),
        peers=tuple(_layer_outputs(loaded.model, bare, torch.device("cpu"), dtype)),
    )


def _on_device(backend: TorchBackend, dtype: torch.dtype) -> Any:
    return load_model(model_dir(), backend, short(dtype)).model


def _layers(dtype: torch.dtype, context: Context) -> Evidence:
    """Every layer gets the host's input, so that nothing propagates from one to the next."""
    host = _host(dtype)
    evidence = Evidence(inputs=digest_tensors([host.ids]))
    results = _layer_outputs(_on_device(context.backend, dtype), host, context.device, dtype)
    for index, (result, wide, peer) in enumerate(zip(results, host.expected, host.peers, strict=True)):
        evidence.beside(f"layer {index}", result, wide, [peer])
    return evidence


@torch.no_grad()
def _layer_outputs(model: nn.Module, host: _Host, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """What each layer makes of the host's input for it, in one pass of the model."""
    outputs: list[torch.Tensor] = []

    def feed(index: int) -> Callable[..., Any]:
        def instead(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (host.inputs[index].to(device).to(dtype), *args[1:])

        return instead

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        outputs.append(hidden_states(output).cpu())

    with ExitStack() as handles:
        for index, layer in enumerate(find_layer_stack(model).layers):
            handles.callback(layer.register_forward_pre_hook(feed(index)).remove)
            handles.callback(layer.register_forward_hook(keep).remove)
        _logits(model, host.ids.to(device))
    return outputs


def whole(dtype: torch.dtype, context: Context) -> Evidence:
    """Logits and the loss of every token."""
    host = _host(dtype)
    evidence = Evidence(inputs=digest_tensors([host.ids]))
    with torch.no_grad():
        logits = _logits(_on_device(context.backend, dtype), host.ids.to(context.device)).cpu()
        expected = _logits(host.wide, host.ids)
        peers = _draws(host, lambda: _logits(host.narrow, host.ids))
    evidence.beside("logits", logits, expected, peers)
    losses = [_losses(peer, host.ids) for peer in peers]
    evidence.beside("loss of each token", _losses(logits, host.ids), _losses(expected, host.ids), losses)
    agree = float((logits.argmax(-1) == expected.argmax(-1)).double().mean())
    evidence.facts["share of next tokens as in float64"] = f"{agree:.4f}"
    return evidence


def _gradient(dtype: torch.dtype, context: Context) -> Evidence:
    host = _host(dtype)
    evidence = Evidence(inputs=digest_tensors([host.ids]))
    device = _weight_gradients(_on_device(context.backend, dtype), host.ids.to(context.device))
    expected = _weight_gradients(host.wide, host.ids)
    peers = _draws(host, lambda: _weight_gradients(host.narrow, host.ids))
    for name, result in device.items():
        evidence.beside(name, result, expected[name], [peer[name] for peer in peers])
    return evidence


def _draws(host: _Host, work: Callable[[], Result]) -> list[Result]:
    """What the host makes of the model, and of the model with noise on each layer's output as large as the host's own
    error there: errors of a whole model hang together, so another device's are another draw, not the same.
    """
    layers = find_layer_stack(host.narrow).layers
    results = [work()]
    for draw in range(_DRAWS):
        with ExitStack() as handles:
            for index, layer in enumerate(layers):
                error = float((host.peers[index].double() - host.expected[index]).square().mean().sqrt())
                noisy = functools.partial(_noisy, draw * len(layers) + index, error)
                handles.callback(layer.register_forward_hook(noisy).remove)
            results.append(work())
    return results


def _noisy(seed: int, error: float, _module: nn.Module, _args: Any, output: Any) -> Any:
    hidden = hidden_states(output)
    step = noise.normal(hidden.shape, seed=seed, device="cpu", dtype=torch.float64) * error
    # Added as a difference, so that the gradient of what comes before passes as it is.
    moved = (hidden.detach().double() + step).to(hidden.dtype)
    return with_hidden_states(output, hidden + (moved - hidden.detach()))


def _weight_gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss's gradient at one weight of each kind: first and last layer, norm and embedding."""
    torch.autograd.backward(_losses(_logits(model, ids), ids).mean())
    stack = find_layer_stack(model)
    wanted = ("self_attn.q_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight")
    names = [f"{stack.site(index)}.{name}" for index in (0, len(stack) - 1) for name in wanted]
    found = dict(model.named_parameters())
    gradients = {name: found[name].grad.detach().cpu() for name in (*names, "model.embed_tokens.weight")}
    model.zero_grad(set_to_none=True)
    return gradients


def _accuracy(context: Context) -> Evidence:
    """Greedy replies to held-out problems: the end-to-end gate. The intervals of two equal models overlap."""
    asked = problems("held-out", PROBLEMS, seed=7)
    loaded = load_model(model_dir(), context.backend, "float32")
    host = load_model(model_dir(), get_backend(HOST), "float32")
    got: Any = accuracy(loaded.model, loaded.tokenizer, asked)
    expected: Any = accuracy(host.model, host.tokenizer, asked)
    overlap = got.interval[1] >= expected.interval[0]
    require(overlap, f"accuracy is {got}, on the host {expected}")
    return Evidence(facts={"accuracy": str(got), "accuracy on the host": str(expected)})


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits


def _losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")


_RULES: tuple[tuple[str, str, str, Callable[[torch.dtype, Context], Evidence]], ...] = (
    (
        "layers",
        "decoder-layer",
        "every layer, fed with the host's input, is as near to float64 as on the host",
        _layers,
    ),
    ("model", "logits", "the whole model is as near to float64 as on the host", whole),
    ("model", "gradient", "the gradients of its loss are as near to float64 as on the host", _gradient),
)
