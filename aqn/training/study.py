"""All arms and seeds of a training comparison, one run after the other; what is done is never done again."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from aqn.config import AqnConfig
from aqn.deadzone import DeadzoneInjector
from aqn.experiments.result import Cell, Result, environment
from aqn.experiments.subject import is_right
from aqn.injection import Injection, inject
from aqn.training.arms import BASELINE, Fault, arm_config, require_arms
from aqn.training.grpo import require_trl, train_grpo
from aqn.training.recipe import Problems, Recipe, bundled_problems
from aqn.training.run import TrainingRun
from aqn.training.supervised import train_supervised
from hal.backend import TorchBackend
from hal.bundled.arithmetic import Problem
from hal.bundled.evaluate import replies
from hal.errors import UsageError
from hal.files import write_text
from hal.host import HostBackend
from hal.models import load_model
from hal.structure import evaluation_mode

FAULTY, SOUND, NOISY, ELSEWHERE = (
    "accuracy with the fault",
    "accuracy without the fault",
    "accuracy with the fault and 10 % noise",
    "accuracy with the fault, other kinds of question",
)
SECONDS: Final = "seconds a step"
OVERHEAD: Final = "time a step over the baseline's"
SURVIVAL: Final = "share of dead values that noise carried through"
NOISE_IN_TEST: Final = 0.1
BEFORE: Final = "untrained"

ProblemSource = Callable[[Recipe, int], Problems]
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Study:
    """What is compared: a checkpoint `model`, a `fault` (or none), the `arms`, `seeds` of each, the noise `sigma` and
    `mode`, the guide's `layer_sigmas`, and the `recipe` all share.
    """

    model: Path
    fault: Fault | None
    arms: tuple[str, ...]
    seeds: int
    sigma: float
    mode: str
    layer_sigmas: Mapping[int, float]
    recipe: Recipe
    dtype: str = "float32"

    def counter(self, progress: Callable[[int, int], None]) -> Report:
        """What tells `progress(done, total)` of every step, over all seeds and arms."""
        total = self.seeds * len(self.arms) * self.recipe.steps

        def report(arm: str, seed: int, step: int) -> None:
            progress((seed * len(self.arms) + self.arms.index(arm)) * self.recipe.steps + step, total)

        return report

    def settings(self) -> dict[str, Any]:
        """What a run depends on, for the folder's record: a folder holds runs of one setting only."""
        return {
            "model": self.model.name,
            "fault": asdict(self.fault) if self.fault else None,
            "sigma": self.sigma,
            "mode": self.mode,
            "layer_sigmas": {str(layer): sigma for layer, sigma in self.layer_sigmas.items()},
            "recipe": asdict(self.recipe),
            "dtype": self.dtype,
        }


def run_study(
    study: Study, backend: TorchBackend, folder: Path, report: Report, source: ProblemSource = bundled_problems
) -> Result:
    """Make every run that `folder` does not hold yet and compare all of them. An interrupted run goes on from its last
    checkpoint. A folder of other settings is a UsageError.
    """
    require_arms(study.arms, study.fault)
    if study.recipe.method == "grpo":
        require_trl()
    _claim(study, folder)
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    names = [BEFORE, *study.arms]
    for seed in range(study.seeds):
        for arm in names:
            runs[arm, seed] = _run(study, arm, seed, backend, folder, report, source)
    return _compared(study, backend, runs, names)


def curves(folder: Path, arms: Sequence[str], value: str) -> dict[str, tuple[list[float], list[float]]]:
    """The logged `value` of each arm over its steps, averaged over the seeds that logged the step."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for arm in arms:
        at: dict[int, list[float]] = {}
        for file in sorted(folder.glob(f"{arm}-seed*.json")):
            for step, values in json.loads(file.read_text(encoding="utf-8"))["curve"]:
                if value in values:
                    at.setdefault(step, []).append(values[value])
        if at:
            steps = sorted(at)
            found[arm] = ([float(step) for step in steps], [sum(at[step]) / len(at[step]) for step in steps])
    return found


def _run(
    study: Study, arm: str, seed: int, backend: TorchBackend, folder: Path, report: Report, source: ProblemSource
) -> dict[str, Any]:
    file = folder / f"{arm}-seed{seed}.json"
    if file.is_file():
        done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return done
    torch.manual_seed(seed)
    loaded = load_model(study.model, backend, study.dtype)
    problems = source(study.recipe, seed)
    record: dict[str, Any] = {"arm": arm, "seed": seed, "curve": [], "seconds": 0.0}
    if arm != BEFORE:
        config = arm_config(arm, study.fault, study.sigma, study.mode, seed, study.layer_sigmas)
        _train(study, config, loaded, problems.train, seed, folder / f"{arm}-seed{seed}", record, report, backend)
    record["accuracy"] = _evaluated(study, loaded, problems, seed, backend)
    write_text(file, json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder / f"{arm}-seed{seed}", ignore_errors=True)  # checkpoints of a run that is done
    return record


def _train(
    study: Study,
    config: AqnConfig | None,
    loaded: Any,
    train: Sequence[Problem],
    seed: int,
    checkpoints: Path,
    record: dict[str, Any],
    report: Report,
    backend: TorchBackend,
) -> None:
    recipe, model = study.recipe, loaded.model.train()
    curve = _Curve(checkpoints.with_suffix(".curve.json"))
    started = time.monotonic()

    def note(step: int, values: dict[str, float]) -> None:
        curve.add(step, values)
        report(record["arm"], seed, step)

    method = train_grpo if recipe.method == "grpo" else train_supervised
    with _no_bars(), _noise(model, config, backend, recipe) as injection:
        on_host = isinstance(backend, HostBackend)
        method(TrainingRun(model, loaded.tokenizer, train, recipe, seed, checkpoints, injection, note, on_host))
    trained = max(len(curve.new), 1)
    record["curve"], record["seconds"] = curve.all(), (time.monotonic() - started) / trained
    if injection is not None:
        record["hits"] = sum(injection.counts.values())
        rate = injection.deadzone.survival_rate if injection.deadzone is not None else math.nan
        record["survival_rate"] = rate if math.isfinite(rate) else None
    curve.drop()


@contextmanager
def _no_bars() -> Iterator[None]:
    """Transformers draws a bar for every checkpoint it writes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class _Curve:
    """What was logged, kept in a file beside the checkpoints so that a resumed run has all of it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kept: dict[int, dict[str, float]] = {}
        self.new: list[int] = []
        if file.is_file():
            self._kept = {int(step): values for step, values in json.loads(file.read_text(encoding="utf-8")).items()}

    def add(self, step: int, values: dict[str, float]) -> None:
        self._kept.setdefault(step, {}).update(values)
        self.new.append(step)
        write_text(self._file, json.dumps(self._kept))

    def all(self) -> list[tuple[int, dict[str, float]]]:
        return sorted(self._kept.items())

    def drop(self) -> None:
        self._file.unlink(missing_ok=True)


@contextmanager
def _noise(model: Any, config: AqnConfig | None, backend: TorchBackend, recipe: Recipe) -> Iterator[Injection | None]:
    if config is None:
        yield None
        return
    with inject(model, config, backend, steps=recipe.steps, epochs=recipe.epochs) as injection:
        yield injection


def _evaluated(study: Study, loaded: Any, problems: Problems, seed: int, backend: TorchBackend) -> dict[str, float]:
    def fault() -> Any:
        if study.fault is None:
            return nullcontext()
        section = study.fault
        return DeadzoneInjector(section.layer, section.threshold, section.sparsity, scope="token").attach(loaded.model)

    noise = {"sigma": NOISE_IN_TEST, "phases": ["validation"], "seed": seed, "draws": "fast"}
    with torch.no_grad(), evaluation_mode(loaded.model):
        found = {SOUND: _accuracy(loaded, study.recipe, problems.held_out)}
        with fault():
            found[FAULTY] = _accuracy(loaded, study.recipe, problems.held_out)
            if problems.elsewhere:
                found[ELSEWHERE] = _accuracy(loaded, study.recipe, problems.elsewhere)
            with inject(loaded.model, AqnConfig.parse({"aqn": noise}), backend):
                found[NOISY] = _accuracy(loaded, study.recipe, problems.held_out)
    return found


def _accuracy(loaded: Any, recipe: Recipe, asked: Sequence[Problem]) -> float:
    given = replies(loaded.model, loaded.tokenizer, asked, max_new_tokens=recipe.new_tokens)
    return sum(is_right(problem.answer, reply) for problem, reply in zip(asked, given, strict=True)) / len(asked)


def _claim(study: Study, folder: Path) -> None:
    """Write down what this folder holds, or refuse one that holds something else."""
    record = folder / "study.json"
    wanted = study.settings()
    if record.is_file():
        held = json.loads(record.read_text(encoding="utf-8"))
        different = sorted(key for key in {*held, *wanted} if held.get(key) != wanted.get(key))
        if different:
            raise UsageError(
                f"{folder} holds runs of other settings ({', '.join(different)}): choose another --out, or give the "
                "settings in its study.json"
            )
    else:
        write_text(record, json.dumps(wanted, indent=1) + "\n")


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


def _compared(
    study: Study, backend: TorchBackend, runs: Mapping[tuple[str, int], dict[str, Any]], names: Sequence[str]
) -> Result:
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
