"""What the runs of a training comparison say: each arm beside the baseline, over the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from aqn.experiments.result import Cell, Result, environment
from aqn.training.accuracy import ELSEWHERE, FAULTY, NOISY, SOUND
from aqn.training.arms import BASELINE, BEFORE
from aqn.training.study import Study
from hal.backend import TorchBackend

SECONDS: Final = "seconds a step"
OVERHEAD: Final = "time a step over the baseline's"
SURVIVAL: Final = "share of dead values that noise carried through"


def compared(
    study: Study, backend: TorchBackend, runs: Mapping[tuple[str, int], dict[str, Any]], names: Sequence[str]
) -> Result:
    """The result of all `runs`, by arm and seed; `names` are the arms, the untrained model before them."""
    where = (
        f"dead zone at layer {study.fault.layer}, threshold {study.fault.threshold:g}" if study.fault else "no fault"
    )
    result = Result(
        "training",
        f"Training ({study.recipe.method}, {study.recipe.steps} steps) under a fault: {study.model.name}, {where}",
        {**study.settings(), "seeds": study.seeds},
        environment(backend.versions()),
    )
    measures = [name for name in (FAULTY, SOUND, NOISY, ELSEWHERE) if name in runs[names[0], 0]["accuracy"]]
    for measure in measures:
        for arm in names:
            values = tuple(runs[arm, seed]["accuracy"][measure] for seed in range(study.seeds))
            result.cells.append(Cell("after training", arm, measure, values))
    for arm in names[1:]:
        times = tuple(float(runs[arm, seed]["seconds"]) for seed in range(study.seeds))
        result.cells.append(Cell("after training", arm, SECONDS, times))
    result.cells += _of_training(study, runs, names)
    if BASELINE in names:
        others = [arm for arm in names if arm not in (BASELINE, BEFORE)]
        pairs = [(arm, BASELINE) for arm in others] + [(BASELINE, BEFORE)]
        if "guided" in others and "uniform" in others:
            pairs.append(("guided", "uniform"))
        for measure in measures:
            result.compare(measure, pairs)
    shown = [entry for entry in result.comparisons if entry.verdict != "not shown"]
    result.statements = [
        f"{entry.name.partition(': ')[2]}: {entry.first} {entry.verdict} than {entry.second} by "
        f"{abs(entry.difference):.3f} (p {entry.p_paired_corrected:.2g})"
        for entry in shown
    ] + [f"{len(result.comparisons) - len(shown)} of {len(result.comparisons)} comparisons show no difference"]
    return result


def _of_training(study: Study, runs: Mapping[tuple[str, int], dict[str, Any]], names: Sequence[str]) -> Iterator[Cell]:
    """What training itself cost and did: the overhead over the baseline of the same seed, and the survival rate."""
    for arm in names[1:]:
        if arm != BASELINE and BASELINE in names:
            ratios = tuple(
                float(runs[arm, seed]["seconds"]) / float(runs[BASELINE, seed]["seconds"])
                for seed in range(study.seeds)
            )
            yield Cell("training", arm, OVERHEAD, ratios)
        rates = [runs[arm, seed].get("survival_rate") for seed in range(study.seeds)]
        known = tuple(float(rate) for rate in rates if rate is not None and math.isfinite(rate))
        if len(known) == study.seeds:
            yield Cell("training", arm, SURVIVAL, known)
