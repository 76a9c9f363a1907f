"""How devices are known to differ in training: random streams, fused optimizers, a model's accuracy."""

from __future__ import annotations

import torch

from conformance.case import Context
from conformance.cases import model
from conformance.evidence import Evidence, require
from hal import noise
from hal.backend import TorchBackend

_STEPS = 3
_RATE, _DECAY, _BETAS, _EPSILON = 1e-2, 0.1, (0.9, 0.95), 1e-8


def random_streams(context: Context) -> Evidence:
    """A device's generator obeys its seed and its state; its numbers are its own and are compared with nothing."""
    backend = context.backend
    first, again, other = (_draw(backend, seed) for seed in (1, 1, 2))
    evidence = Evidence()
    evidence.same("the same seed again", again, first)
    require(not torch.equal(first, other), "two seeds gave the same numbers")
    generator = backend.generator(3)
    state = generator.get_state()
    once = torch.randn(100, generator=generator, device=context.device).cpu()
    generator.set_state(state)
    evidence.same("a restored state", torch.randn(100, generator=generator, device=context.device), once)
    host = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    evidence.facts["randn has the host's numbers"] = str(torch.equal(first, host))
    return evidence


def _draw(backend: TorchBackend, seed: int) -> torch.Tensor:
    return torch.randn(1000, generator=backend.generator(seed), device=backend.device).cpu()


def optimizer(context: Context) -> Evidence:
    """Three steps of AdamW in the foreach form are the published update (Loshchilov and Hutter, 2019) in float64,
    within float32 rounding of each step. How far the fused form is from it is recorded.
    """
    evidence = Evidence()
    start = noise.normal((257,), seed=21, device="cpu")
    gradients = noise.normal((_STEPS, 257), seed=22, device="cpu")
    expected = _published(start, gradients)
    allowance = _STEPS * (start.double().abs() * 2.0**-23 + 8 * _RATE * 2.0**-20)
    evidence.within("foreach", _stepped(context, start, gradients, foreach=True), expected, allowance)
    try:
        fused = _stepped(context, start, gradients, fused=True)
    except (RuntimeError, NotImplementedError) as error:
        evidence.facts["fused"] = f"refused ({type(error).__name__})"
    else:
        evidence.facts["fused, largest distance"] = f"{float((fused.double() - expected).abs().max()):.3g}"
    return evidence


def _stepped(context: Context, start: torch.Tensor, gradients: torch.Tensor, **form: bool) -> torch.Tensor:
    parameter = torch.nn.Parameter(start.to(context.device, copy=True))
    options = {"lr": _RATE, "betas": _BETAS, "eps": _EPSILON, "weight_decay": _DECAY}
    adam = torch.optim.AdamW([parameter], **options, **form)  # type: ignore[arg-type]  # a dict of mixed options
    for gradient in gradients:
        parameter.grad = gradient.to(context.device)
        adam.step()
    return parameter.detach().cpu()


def _published(start: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    x = start.double()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step, gradient in enumerate(gradients.double(), start=1):
        x = x * (1 - _RATE * _DECAY)
        first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient.square()
        mean, spread = first / (1 - _BETAS[0] ** step), second / (1 - _BETAS[1] ** step)
        x = x - _RATE * mean / (spread.sqrt() + _EPSILON)
    return x


def model_accuracy(context: Context) -> Evidence:
    """The whole model's logits and losses: the end-to-end gate of the quick run; accuracy is model/accuracy's."""
    return model.whole(torch.float32, context)
