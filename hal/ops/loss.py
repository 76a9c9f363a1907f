"""Cross-entropy over a vocabulary, with targets checked on the host."""

from __future__ import annotations

import torch
from torch.nn import functional

from hal.errors import UsageError
from hal.ops.catalogue import Arguments, Op, register
from hal.ops.precision import host64
from hal.ops.sampling import SampleSpec

IGNORED = -100


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, ignored: int = IGNORED) -> torch.Tensor:
    """Loss of each token, float32 [N]: `logsumexp(logits) - logits[target]` for logits [N, V] and targets [N] int64, in
    float32; zero where the target is `ignored`. A target outside [0, V) is a UsageError, found on the host before the
    device sees it: some accelerators return a wrong number for one, others end the process. Waits for the device.
    """
    check_targets(targets, logits.shape[-1], ignored)
    return functional.cross_entropy(logits.float(), targets, ignore_index=ignored, reduction="none")


def check_targets(targets: torch.Tensor, vocabulary: int, ignored: int = IGNORED) -> None:
    """Raise UsageError for a target that is neither in [0, `vocabulary`) nor `ignored`; decided on the host."""
    host = targets.detach().cpu()
    wrong = host[((host < 0) | (host >= vocabulary)) & (host != ignored)]
    if wrong.numel():
        raise UsageError(
            f"target {int(wrong[0])} is outside the vocabulary of {vocabulary}: give 0 to {vocabulary - 1}, "
            f"or {ignored} for a token without one"
        )


def _reference(logits: torch.Tensor, targets: torch.Tensor, ignored: int = IGNORED) -> torch.Tensor:
    wide, host = host64(logits), targets.cpu()
    counted = host != ignored
    chosen = wide.gather(-1, torch.where(counted, host, 0)[:, None])[:, 0]
    largest = wide.detach().amax(-1, keepdim=True)
    total = torch.log(torch.exp(wide - largest).sum(-1)) + largest[:, 0]
    return torch.where(counted, total - chosen, 0.0)


def _error_scale(logits: torch.Tensor, targets: torch.Tensor, ignored: int = IGNORED) -> torch.Tensor:
    """The largest logit is subtracted from each, and the loss from their difference; the sum has V terms."""
    terms = host64(logits).abs().amax(-1) * 2 + 1 + _reference(logits, targets, ignored).abs()
    return torch.where(targets.cpu() == ignored, 0.0, terms)


def _sample(spec: SampleSpec) -> Arguments:
    tokens, vocabulary = spec.pick(tiny=(2, 8), odd=(5, 37), large=(64, 1024))
    targets = spec.ids("targets", tokens, high=vocabulary)
    if spec.size != "tiny":
        targets[::4] = IGNORED
    return spec.data("logits", tokens, vocabulary, headroom=2), targets


CROSS_ENTROPY = register(
    Op(
        "cross_entropy",
        "cross_entropy(logits[N, V], targets[N] int64, ignored: int = -100) -> [N] float32",
        cross_entropy,
        _reference,
        _sample,
        error_scale=_error_scale,
    )
)
