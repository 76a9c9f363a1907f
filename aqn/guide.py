"""A scan chooses where the noise goes and how much of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from aqn.config import AqnConfig
from aqn.guide_rules import HIGHEST, LOWEST, RULES, Advice, LayerEvidence, advise
from hal.errors import UsageError
from srdd.report import Report

HIGH_PRIORITY = 1.2  # times the base


def guide(
    report: Report,
    base_sigma: float = 0.05,
    rules: str = "relative",
    schedule: str = "epoch_aware",
) -> AqnConfig:
    """The noise that a scan's `report` advises: a sigma for every layer, around `base_sigma`, by one of the rules of
    `aqn.guide_rules`, with the `schedule` under which it is to decay. A report without layers, an unknown rule or a
    base outside [0.01, 0.15] is a UsageError.
    """
    if not LOWEST <= base_sigma <= HIGHEST:
        raise UsageError(f"base sigma is {base_sigma}: give a value from {LOWEST} to {HIGHEST}")
    advice = advice_for(report, base_sigma, rules)
    document = {
        "aqn": {
            "enabled": True,
            "layer_specific": True,
            "base_sigma": base_sigma,
            "layer_sigmas": {entry.layer: round(entry.sigma, 6) for entry in advice},
            "schedule": schedule,
            "high_priority_layers": [entry.layer for entry in advice if is_high(entry, base_sigma)],
        },
        "srdd_metadata": {
            "num_layers": len(advice),
            "analysis_date": datetime.now(timezone.utc).date().isoformat(),
            "model": Path(report.model).name,
            "backend": report.backend,
            "verdict": report.verdict,
            "findings": [f"layer {entry.layer}: {entry.kind} at {entry.site}" for entry in report.findings],
            "rules": rules,
        },
    }
    return AqnConfig.parse(document, "the guide's configuration")


def advice_for(report: Report, base_sigma: float, rules: str = "relative") -> list[Advice]:
    """The advice behind `guide`, with the reasons of each layer."""
    if rules not in RULES:
        raise UsageError(f"unknown rules '{rules}': choose one of {', '.join(RULES)}")
    if not report.measurements.layers:
        raise UsageError("the report holds no layers: scan a model first")
    return advise(_evidence(report), base_sigma, rules)


def is_high(advice: Advice, base_sigma: float) -> bool:
    """Whether a layer's noise is well above the base."""
    return advice.sigma > HIGH_PRIORITY * base_sigma


def summary(advice: Sequence[Advice], base_sigma: float) -> list[str]:
    """One line a layer: `Layer 15: σ=0.1000 (2.0x) ↑ HIGH`, and the reasons where there are any."""
    lines = []
    for entry in advice:
        mark = " ↑ HIGH" if is_high(entry, base_sigma) else (" ↓ LOW" if entry.multiplier < 1 else "")
        reasons = f"   {'; '.join(entry.reasons)}" if entry.reasons else ""
        head = f"Layer {entry.layer}: σ={entry.sigma:.4f}"  # noqa: RUF001 -- sigma as the documents print it
        lines.append(f"{head} ({entry.multiplier:.1f}x){mark}{reasons}")
    return lines


def _evidence(report: Report) -> list[LayerEvidence]:
    found = {finding.layer: finding.kind for finding in reversed(report.findings)}
    return [
        LayerEvidence(
            index=layer.index,
            gain=layer.gain.gain if layer.gain else math.nan,
            kurtosis=layer.shape.kurtosis if layer.shape else math.nan,
            instability=layer.stability.spread if layer.stability else math.nan,
            score=score,
            kind=found.get(layer.index, ""),
            label=label,
        )
        for layer, score, label in zip(
            report.measurements.layers, report.diagnosis.scores, report.diagnosis.labels, strict=True
        )
    ]
