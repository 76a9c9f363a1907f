"""How accurate checkpoints stay when every layer carries noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from aqn.config import AqnConfig
from aqn.experiments.plan import Progress
from aqn.experiments.result import Cell, Result, environment
from aqn.experiments.subject import Subject
from aqn.injection import inject
from hal.errors import UsageError

ACCURACY: Final = "accuracy"


def run_robustness(
    subjects: Sequence[Subject],
    noise: Sequence[float],
    samples: int = 200,
    seeds: int = 5,
    mode: Literal["matmul", "all_ops"] = "matmul",
    progress: Progress | None = None,
) -> Result:
    """Greedy accuracy of each checkpoint at each noise level; every seed draws its own questions and its own noise, the
    same for every checkpoint. Levels are compared with the first of each checkpoint, checkpoints with the first one.
    """
    if not noise or any(level < 0 for level in noise):
        raise UsageError(f"noise levels {list(noise)}: give one or more, none negative, for example 0,0.05,0.1")
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise UsageError(f"checkpoints {', '.join(names)} have one name: give folders with different names")
    result = Result(
        "robustness",
        f"Accuracy under noise ({mode}): {', '.join(names)}",
        {"noise": list(noise), "samples": samples, "seeds": seeds, "mode": mode},
        environment(subjects[0].backend.versions()),
    )
    done, total = 0, len(subjects) * len(noise) * seeds
    for subject in subjects:
        for level in noise:
            rates = []
            for seed in range(seeds):
                rates.append(_rate(subject, level, samples, seed, mode))
                done += 1
                if progress is not None:
                    progress(done, total)
            result.cells.append(Cell(_level(level), subject.name, ACCURACY, tuple(rates)))
    _compare_levels(result, names, noise)
    result.compare(ACCURACY, [(name, names[0]) for name in names[1:]])
    result.statements = [_statement(result, name, noise) for name in names]
    return result


def _rate(subject: Subject, level: float, samples: int, seed: int, mode: str) -> float:
    entries = subject.draw(samples, seed)
    if level == 0:
        return subject.accuracy(entries).rate
    document = {"sigma": level, "mode": mode, "phases": ["validation"], "seed": seed, "draws": "fast"}
    with inject(subject.model, AqnConfig.parse({"aqn": document}), subject.backend):
        return subject.accuracy(entries).rate


def _compare_levels(result: Result, names: Sequence[str], noise: Sequence[float]) -> None:
    """Noise levels as conditions of one point a checkpoint, compared with the first level."""
    turned = Result("", "", {}, {})
    turned.cells = [
        Cell(name, _level(level), ACCURACY, result.cell(_level(level), name, ACCURACY).values)
        for name in names
        for level in noise
    ]
    turned.compare(ACCURACY, [(_level(level), _level(noise[0])) for level in noise[1:]])
    result.comparisons = turned.comparisons


def _statement(result: Result, name: str, noise: Sequence[float]) -> str:
    parts = [f"{_level(level)} {result.cell(_level(level), name, ACCURACY).summary.mean:.1%}" for level in noise]
    return f"{name}: {', '.join(parts)}"


def _level(level: float) -> str:
    return f"noise {level:g}"
