"""How many held-out problems a trained model gets right: sound, with the fault, with the fault and noise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

import torch

from aqn.config import AqnConfig
from aqn.deadzone import DeadzoneInjector
from aqn.injection import inject
from aqn.training.recipe import Problems, Recipe
from aqn.training.study import Study
from hal.backend import TorchBackend
from hal.bundled.arithmetic import Problem
from hal.bundled.evaluate import replies
from hal.evaluation import is_right
from hal.structure import evaluation_mode

FAULTY, SOUND, NOISY, ELSEWHERE = (
    "accuracy with the fault",
    "accuracy without the fault",
    "accuracy with the fault and 10 % noise",
    "accuracy with the fault, other kinds of question",
)
NOISE_IN_TEST: Final = 0.1


def accuracies(study: Study, loaded: Any, problems: Problems, seed: int, backend: TorchBackend) -> dict[str, float]:
    """The share of right answers, by what was measured; with the same noise for every arm."""

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
