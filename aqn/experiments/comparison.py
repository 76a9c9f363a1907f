"""Does noise at the faulty layer help more than noise everywhere? Five conditions, and the layer left out.

Every seed draws its own data and its own noise, so an interval covers both; conditions of one seed share their data,
so that they are compared pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from aqn.experiments.plan import Plan, Progress
from aqn.experiments.result import Cell, Result, environment
from aqn.experiments.subject import Entry, Subject
from aqn.experiments.without_layer import without_layer
from aqn.injection import inject
from hal.errors import UsageError
from hal.significance import Comparison
from hal.structure import find_layer_stack

CLEAN, DEADZONE, GLOBAL, TARGETED, HEALTHY, PRUNED = (
    "Clean",
    "Deadzone only",
    "Global AQN",
    "Targeted AQN",
    "Healthy AQN",
    "Layer left out",
)
PAIRS: Final = (
    (TARGETED, GLOBAL),
    (TARGETED, DEADZONE),
    (GLOBAL, DEADZONE),
    (HEALTHY, DEADZONE),
    (PRUNED, DEADZONE),
)
LOSS, SURVIVAL = "loss", "survival rate"


def run_comparison(subject: Subject, plan: Plan, progress: Progress | None = None) -> Result:
    """Measure every condition at every point and say what the tests carry."""
    depth = len(find_layer_stack(subject.model))
    wrong = [layer for layer in plan.layers if not 0 <= layer < depth]
    if wrong:
        raise UsageError(f"layer {wrong[0]} does not exist: {subject.name} has layers 0 to {depth - 1}")
    result = Result(
        "injection",
        f"Noise against a dead zone: {subject.name}, sigma {plan.sigma}, noise on each {plan.kind}",
        {"samples": plan.samples, "seeds": plan.seeds, "sigma": plan.sigma, "kind": plan.kind},
        environment(subject.backend.versions()),
    )
    data = [subject.draw(plan.samples, seed) for seed in range(plan.seeds)]
    clean = tuple(subject.loss(entries) for entries in data)
    done, total = 0, len(plan.points()) * plan.seeds
    for layer, threshold in plan.points():
        point = f"layer {layer}, threshold {threshold:g}"
        rows: dict[tuple[str, str], list[float]] = {}
        for seed, entries in enumerate(data):
            for (condition, measure), value in _conditions(
                subject, plan, layer, threshold, seed, entries, depth
            ).items():
                rows.setdefault((condition, measure), []).append(value)
            done += 1
            if progress is not None:
                progress(done, total)
        result.cells.append(Cell(point, CLEAN, LOSS, clean))
        result.cells += [
            Cell(point, condition, measure, tuple(values))
            for (condition, measure), values in rows.items()
            if all(math.isfinite(value) for value in values)
        ]
    result.compare(LOSS, PAIRS)
    result.statements = [_statement(result, *at) for at in plan.points()] + [_overall(result.comparisons)]
    return result


def _conditions(
    subject: Subject, plan: Plan, layer: int, threshold: float, seed: int, entries: Sequence[Entry], depth: int
) -> dict[tuple[str, str], float]:
    everywhere = list(range(depth))
    noisy = {
        DEADZONE: None,
        GLOBAL: everywhere,
        TARGETED: [layer],
        HEALTHY: [other for other in everywhere if other != layer],
    }
    found: dict[tuple[str, str], float] = {}
    for condition, layers in noisy.items():
        if layers == []:  # a model of one layer has no healthy ones
            continue
        config = plan.config(layer, threshold, seed, layers, ["validation"])
        with inject(subject.model, config, subject.backend) as injection:
            found[condition, LOSS] = subject.loss(entries)
        if injection.deadzone is not None and layers and layer in layers and plan.kind == "layer":
            found[condition, SURVIVAL] = injection.deadzone.survival_rate
    with without_layer(subject.model, layer):
        found[PRUNED, LOSS] = subject.loss(entries)
    return found


def _statement(result: Result, layer: int, threshold: float) -> str:
    point = f"layer {layer}, threshold {threshold:g}"
    clean, dead = (result.cell(point, name, LOSS).summary.mean for name in (CLEAN, DEADZONE))
    decided = next(entry for entry in result.comparisons if entry.name.startswith(f"{point}:"))
    return (
        f"{point}: the dead zone takes the loss from {clean:.3f} to {dead:.3f}; targeted against global noise: "
        f"{decided.difference:+.4f} [{decided.paired_low:+.4f}, {decided.paired_high:+.4f}], {_words(decided)}"
    )


def _words(entry: Comparison) -> str:
    return {
        "lower": "targeted is better",
        "higher": "targeted is worse",
        "not shown": "a difference is not shown",
    }[entry.verdict]


def _overall(comparisons: Sequence[Comparison]) -> str:
    targeted = [entry for entry in comparisons if (entry.first, entry.second) == (TARGETED, GLOBAL)]
    counts = {
        verdict: sum(entry.verdict == verdict for entry in targeted) for verdict in ("lower", "higher", "not shown")
    }
    helped = [entry for entry in comparisons if entry.second == DEADZONE and entry.first == TARGETED]
    gained = sum(entry.verdict == "lower" for entry in helped)
    return (
        f"targeted beats global noise at {counts['lower']} of {len(targeted)} points, loses at {counts['higher']}, and "
        f"is not told apart at {counts['not shown']}; targeted noise lowers the loss below that of the dead zone alone "
        f"at {gained} of {len(helped)} (paired t-tests over seeds, Holm over all {len(comparisons)} comparisons)"
    )
