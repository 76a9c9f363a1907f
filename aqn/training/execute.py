"""All arms and seeds of a training comparison, one run after the other; what is done is never done again."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aqn.config import AqnConfig
from aqn.experiments.result import Result
from aqn.injection import Injection, inject
from aqn.training.accuracy import accuracies
from aqn.training.arms import BEFORE, arm_config, require_arms
from aqn.training.comparison import compared
from aqn.training.curve import Curve
from aqn.training.grpo import require_trl, train_grpo
from aqn.training.recipe import ProblemSource, Recipe, bundled_problems
from aqn.training.run import TrainingRun
from aqn.training.study import Report, Study
from aqn.training.supervised import train_supervised
from hal.backend import TorchBackend
from hal.bundled.arithmetic import Problem
from hal.host import HostBackend
from hal.models import load_model
from hal.run_folder import claim, made_once


def run_study(
    study: Study, backend: TorchBackend, folder: Path, report: Report, source: ProblemSource = bundled_problems
) -> Result:
    """Make every run that `folder` does not hold yet and compare all of them. An interrupted run goes on from its last
    checkpoint. A folder of other settings is a UsageError.
    """
    require_arms(study.arms, study.fault)
    if study.recipe.method == "grpo":
        require_trl()
    claim(folder, study.settings())
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    names = [BEFORE, *study.arms]
    for seed in range(study.seeds):
        for arm in names:
            run = partial(_run, study, arm, seed, backend, folder, report, source)
            runs[arm, seed] = made_once(folder / f"{arm}-seed{seed}.json", run)
            shutil.rmtree(folder / f"{arm}-seed{seed}", ignore_errors=True)  # checkpoints of a run that is done
    return compared(study, backend, runs, names)


def _run(
    study: Study, arm: str, seed: int, backend: TorchBackend, folder: Path, report: Report, source: ProblemSource
) -> dict[str, Any]:
    torch.manual_seed(seed)
    loaded = load_model(study.model, backend, study.dtype)
    problems = source(study.recipe, seed)
    record: dict[str, Any] = {"arm": arm, "seed": seed, "curve": [], "seconds": 0.0}
    if arm != BEFORE:
        config = arm_config(arm, study.fault, study.sigma, study.mode, seed, study.layer_sigmas)
        _train(study, config, loaded, problems.train, seed, folder / f"{arm}-seed{seed}", record, report, backend)
    record["accuracy"] = accuracies(study, loaded, problems, seed, backend)
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
    curve = Curve(checkpoints.with_suffix(".curve.json"))
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


@contextmanager
def _noise(model: Any, config: AqnConfig | None, backend: TorchBackend, recipe: Recipe) -> Iterator[Injection | None]:
    if config is None:
        yield None
        return
    with inject(model, config, backend, steps=recipe.steps, epochs=recipe.epochs) as injection:
        yield injection
