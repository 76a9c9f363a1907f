"""What is compared in training: the same distillation with less and with more of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from distill.config import DistillConfig, Weights
from hal.errors import UsageError


def _changed(config: DistillConfig, **sections: Mapping[str, object]) -> DistillConfig:
    """The configuration with some keys of its sections replaced."""
    document = config.model_dump()
    for name, changes in sections.items():
        document[name] = {**document[name], **changes}
    return DistillConfig.parse(document)


def _baseline(config: DistillConfig) -> DistillConfig:
    return _changed(config, attention={"source": "none"}, weights={"cka": 0.0}, kv={"shuffled": False})


def _attention(config: DistillConfig) -> DistillConfig:
    return _changed(_baseline(config), attention={"source": _source(config)})


def _attention_and_cka(config: DistillConfig) -> DistillConfig:
    return _changed(_attention(config), weights={"cka": config.weights.cka or Weights().cka})


def _cross_entropy(config: DistillConfig) -> DistillConfig:
    return _changed(_baseline(config), weights=dict.fromkeys(("kv", "codi", "cka", "contrastive"), 0.0))


def _shuffled(config: DistillConfig) -> DistillConfig:
    return _changed(_baseline(config), kv={"shuffled": True})


def _source(config: DistillConfig) -> str:
    return "student" if config.attention.source == "none" else config.attention.source


ARMS: Final[dict[str, Callable[[DistillConfig], DistillConfig]]] = {
    "baseline": _baseline,
    "attention": _attention,
    "attention-cka": _attention_and_cka,
    "cross-entropy": _cross_entropy,
    "shuffled": _shuffled,
}
DEFAULT: Final = ("baseline", "attention", "attention-cka")


def parse_arms(text: str) -> tuple[str, ...]:
    """The arms named in a comma-separated list, the first being what the others are compared with."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise UsageError(f"arms '{text}': choose one or more of {', '.join(ARMS)}")
    return names
