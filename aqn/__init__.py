"""Adaptive quantisation noise: train a model with controlled noise so that it lives with its hardware's errors."""

from aqn.config import AqnConfig
from aqn.deadzone import DeadzoneInjector, DeadzoneMatMul
from aqn.guide import guide
from aqn.hits import Hit
from aqn.hookspecs import hookimpl
from aqn.injection import Injection, inject
from aqn.schedule_registry import schedule

__all__ = [
    "AqnConfig",
    "DeadzoneInjector",
    "DeadzoneMatMul",
    "Hit",
    "Injection",
    "guide",
    "hookimpl",
    "inject",
    "schedule",
]
