"""Distillation: what a student is pulled towards inside a teacher, and whether those pulls are in proportion."""

from distill.config import DistillConfig
from distill.diagnosis import Diagnosis, diagnose
from distill.forward_pass import ForwardPass, run_pass
from distill.key_values import KeyValues
from distill.losses.alignment import common_positions
from distill.losses.attention_weights import WarmUp, token_importance
from distill.losses.cka import cka_loss, linear_cka
from distill.losses.codi import codi_loss
from distill.losses.compression import kept_tokens
from distill.losses.contrastive import contrastive_loss
from distill.losses.kv_loss import kv_loss
from distill.losses.negative_control import shuffled
from distill.objective import Objective, Terms
from distill.routing import FixedRouting, LearnableRouting, SimilarityRouting, fuse

__all__ = [
    "Diagnosis",
    "DistillConfig",
    "FixedRouting",
    "ForwardPass",
    "KeyValues",
    "LearnableRouting",
    "Objective",
    "SimilarityRouting",
    "Terms",
    "WarmUp",
    "cka_loss",
    "codi_loss",
    "common_positions",
    "contrastive_loss",
    "diagnose",
    "fuse",
    "kept_tokens",
    "kv_loss",
    "linear_cka",
    "run_pass",
    "shuffled",
    "token_importance",
]
