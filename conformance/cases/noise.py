"""Noise: the exact stream bit for bit, its distribution, and its independence of how work is divided."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.stats import norm

from conformance.case import Case, Context
from conformance.evidence import Evidence, digest_tensors, require
from hal import noise

# Statistics of a right generator stay below this many standard errors but once in 15 million.
SIGMAS = 5.4
_SAMPLES = 1 << 18
# Random123's known answer for Philox4x32-10 with counter and key zero.
KNOWN_WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


def cases() -> Iterator[Case]:
    """One case for each property."""
    for name, operator, purpose, check in _RULES:
        yield Case(f"noise/{name}", operator, check, purpose)


def _known_answer(context: Context) -> Evidence:
    words = noise.bits(4, seed=0, stream=0, device=context.device)
    evidence = Evidence()
    evidence.equal("words", words, torch.tensor(KNOWN_WORDS))
    return evidence


def _bits(context: Context) -> Evidence:
    """Every kind of draw has the host's bits; their digests go into the file, to be the same on every machine."""
    evidence = Evidence()
    for name, draw in {"bits": noise.bits, "normal": noise.normal, "uniform": noise.uniform}.items():
        device = draw((131, 513), seed=7, stream=11, device=context.device).cpu()
        evidence.equal(name, device, draw((131, 513), seed=7, stream=11, device="cpu"))
        evidence.agreement[f"digest of {name}"] = digest_tensors([device])
    numbers = noise.integers((1000,), -5, 17, seed=7, device=context.device)
    evidence.equal("integers", numbers, noise.integers((1000,), -5, 17, seed=7, device="cpu"))
    far = noise.normal(1001, seed=7, start=(1 << 34) - 500, device=context.device)
    evidence.equal("far elements", far, noise.normal(1001, seed=7, start=(1 << 34) - 500, device="cpu"))
    return evidence


def _exact_operators(context: Context) -> Evidence:
    """Noise added in exact mode is the IEEE float32 result of each step by itself, computed here by numpy."""
    x = noise.normal((4, 1031), seed=8, device="cpu")
    draw = noise.normal((4, 1031), seed=9, stream=3, start=21, device="cpu").numpy()
    values, sigma = x.numpy(), np.float32(0.05)
    evidence = Evidence()
    relative = (draw * sigma) * np.abs(values) + values
    additive = draw * sigma + values
    evidence.equal("relative", context.call("relative_noise", x, 0.05, 9, 3, 21), torch.from_numpy(relative))
    evidence.equal("additive", context.call("additive_noise", x, 0.05, 9, 3, 21), torch.from_numpy(additive))
    for dtype in (torch.bfloat16, torch.float16):
        if dtype in context.backend.dtypes:
            narrow = x.to(dtype)
            wide = narrow.float().numpy()
            expected = torch.from_numpy((draw * sigma) * np.abs(wide) + wide).to(dtype)
            evidence.equal(f"relative, {dtype}", context.call("relative_noise", narrow, 0.05, 9, 3, 21), expected)
    return evidence


def _resharding(context: Context) -> Evidence:
    """A slice of rows, a shard of columns, a batch in pieces: the same numbers as the whole."""
    whole = noise.normal((12, 64), seed=12, stream=4, device=context.device).cpu()
    evidence = Evidence()
    rows = noise.normal((5, 64), seed=12, stream=4, start=3 * 64, device=context.device)
    evidence.equal("rows 3 to 7", rows, whole[3:8])
    columns = noise.normal((12, 13), seed=12, stream=4, start=17, row_stride=64, device=context.device)
    evidence.equal("columns 17 to 29", columns, whole[:, 17:30])
    chosen = torch.tensor([700, 3, 3, 511], device=context.device)
    evidence.equal("single elements", noise.normal_at(chosen, seed=12, stream=4), whole.view(-1)[chosen.cpu()])
    x = noise.normal((12, 64), seed=1, device="cpu")
    together = context.call("relative_noise", x, 0.05, 12, 4).cpu()
    pieces = [context.call("relative_noise", x[r : r + 4], 0.05, 12, 4, r * 64).cpu() for r in (0, 4, 8)]
    evidence.equal("a batch in pieces", torch.cat(pieces), together)
    return evidence


def _moments_of(mode: str) -> Callable[[Context], Evidence]:
    def check(context: Context) -> Evidence:
        zeros = torch.zeros(_SAMPLES)
        sample = context.call("additive_noise", zeros, 1.0, 31, 2, 0, mode).cpu().double()
        return _distribution(sample, "additive noise")

    return check


def _relative_moments_of(mode: str) -> Callable[[Context], Evidence]:
    def check(context: Context) -> Evidence:
        x = torch.full((_SAMPLES,), -2.0)
        noisy = context.call("relative_noise", x, 0.05, 32, 2, 0, mode).cpu().double()
        return _distribution((noisy + 2.0) / 0.1, "relative noise over sigma * |x|")

    return check


def _distribution(sample: torch.Tensor, name: str) -> Evidence:
    """Mean, variance, skewness, kurtosis and tails of standard normal numbers, each within its standard error."""
    n = sample.numel()
    mean = float(sample.mean())
    centred = sample - mean
    variance = float(centred.square().mean())
    unit = centred / math.sqrt(variance) if variance else centred
    figures = {
        "mean": (mean, 0.0, math.sqrt(1 / n)),
        "variance": (variance, 1.0, math.sqrt(2 / n)),
        "skewness": (float((unit**3).mean()), 0.0, math.sqrt(6 / n)),
        "kurtosis": (float((unit**4).mean()) - 3, 0.0, math.sqrt(24 / n)),
    }
    for limit in (2, 3, 4):
        share = 2 * float(norm.sf(limit))
        got = float((sample.abs() > limit).double().mean())
        figures[f"share above {limit} sigma"] = (got, share, math.sqrt(share * (1 - share) / n))
    evidence = Evidence(facts={key: f"{value:.6g}" for key, (value, _, _) in figures.items()})
    for key, (value, expected, error) in figures.items():
        distance = abs(value - expected) / error
        require(
            distance <= SIGMAS,
            f"{key} of {name} is {value:.5g}, expected {expected:.5g} within {SIGMAS * error:.2g} "
            f"({distance:.1f} standard errors over {n} values)",
        )
    return evidence


def _independence(context: Context) -> Evidence:
    """Streams of different layers, steps and ranks, and of neighbouring seeds, are uncorrelated with each other."""
    zeros = torch.zeros(4096)
    keys = [(5, noise.stream_key("layer", layer, "step", step)) for layer in range(6) for step in range(6)]
    keys += [(5, noise.stream_key("rank", rank)) for rank in range(6)] + [(6 + seed, 0) for seed in range(6)]
    draws = [context.call("additive_noise", zeros, 1.0, seed, stream).cpu().double() for seed, stream in keys]
    streams = torch.stack(draws)
    streams = streams - streams.mean(-1, keepdim=True)
    streams = streams / streams.norm(dim=-1, keepdim=True)
    worst = 0.0
    for lag in range(3):
        correlation = streams @ streams.roll(lag, -1).T * math.sqrt(zeros.numel())
        if lag == 0:
            correlation.fill_diagonal_(0.0)
        worst = max(worst, float(correlation.abs().max()))
    # The largest of this many normal statistics exceeds the limit once in a million runs.
    limit = float(norm.isf(1e-6 / (2 * 3 * len(keys) ** 2)))
    require(worst <= limit, f"two streams correlate at {worst:.1f} standard errors, limit {limit:.1f}")
    return Evidence(facts={"largest correlation, standard errors": f"{worst:.2f}"})


def _fast_mode(context: Context) -> Evidence:
    """The device's own generator: the same seed gives the same numbers again, another seed others."""
    x = torch.zeros(1000)
    first, again, other = (context.call("additive_noise", x, 1.0, seed, 0, 0, "fast").cpu() for seed in (41, 41, 42))
    evidence = Evidence()
    evidence.same("the same seed again", again, first)
    require(not torch.equal(first, other), "two seeds gave the same numbers in fast mode")
    return evidence


def _gradient(context: Context) -> Evidence:
    """The gradient of relative noise is 1 + sigma * sign(x) * e with the forward's own e."""
    x = noise.normal((3, 65), seed=13, device="cpu")
    draw = noise.normal((3, 65), seed=14, stream=6, device="cpu")
    leaf = x.to(context.device, copy=True).requires_grad_()
    context.backend.ops.relative_noise(leaf, 0.05, 14, 6).sum().backward()
    evidence = Evidence()
    assert leaf.grad is not None  # noqa: S101 -- for the type checker: backward() gave it one
    evidence.equal("gradient", leaf.grad, draw * 0.05 * x.sign() + 1.0)
    return evidence


_RULES: tuple[tuple[str, str, str, Callable[[Context], Evidence]], ...] = (
    ("known-answer", "bits", "Philox4x32-10 gives the published words", _known_answer),
    ("bits", "bits", "the exact mode has the same bits as on the host", _bits),
    ("operators", "relative_noise", "added noise is exact, each float32 step rounded by itself", _exact_operators),
    ("resharding", "relative_noise", "noise depends neither on sharding nor on batching", _resharding),
    ("moments/exact", "additive_noise", "moments and tails of exact noise are normal", _moments_of("exact")),
    ("moments/fast", "additive_noise", "moments and tails of the device's own noise are normal", _moments_of("fast")),
    ("relative/exact", "relative_noise", "relative noise has the size asked for", _relative_moments_of("exact")),
    ("relative/fast", "relative_noise", "fast relative noise has the size asked for", _relative_moments_of("fast")),
    ("independence", "additive_noise", "streams of layers, steps, ranks and seeds are uncorrelated", _independence),
    ("fast-mode", "additive_noise", "the device's own generator obeys its seed", _fast_mode),
    ("gradient", "relative_noise", "the backward pass draws the forward's noise again", _gradient),
)
