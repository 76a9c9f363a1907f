"""What noise costs a training step, measured turn by turn in one run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch

from aqn.config import AqnConfig
from aqn.experiments.plan import Progress
from aqn.experiments.result import Cell, Result, environment
from aqn.experiments.subject import Subject
from aqn.injection import inject
from hal.structure import find_layer_stack

NONE: Final = "no noise"
MILLISECONDS, RATIO = "ms a step", "time over no noise"
BOTH_WAYS: Final = ("actor_forward", "actor_backward")


def run_overhead(
    subject: Subject, rows: int = 16, length: int = 64, seeds: int = 7, progress: Progress | None = None
) -> Result:
    """Wall time of a step (forward and backward on `rows` x `length` random tokens) with noise on all layers, on a
    third of them, both ways and on all operators, exact and fast; `seeds` rounds, each measuring every case once.
    """
    depth = len(find_layer_stack(subject.model))
    third = list(range(max(1, depth // 3)))
    cases: dict[str, dict[str, Any] | None] = {NONE: None}
    for draws in ("fast", "exact"):
        cases[f"a third of the layers, {draws}"] = {"target_layers": third, "draws": draws}
        cases[f"all layers, {draws}"] = {"draws": draws}
        cases[f"all layers, both ways, {draws}"] = {"draws": draws, "phases": list(BOTH_WAYS)}
        cases[f"all layers, all_ops, {draws}"] = {"draws": draws, "mode": "all_ops"}
    result = Result(
        "overhead",
        f"Cost of noise in a training step of {rows} x {length} tokens: {subject.name}",
        {"rows": rows, "length": length, "seeds": seeds, "threads": torch.get_num_threads()},
        environment(subject.backend.versions()),
    )
    ids = torch.randint(subject.model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    step = _step(subject, ids.to(subject.backend.device))
    times: dict[str, list[float]] = {name: [] for name in cases}
    step()
    for round_ in range(seeds):
        for name, noise in cases.items():
            with _noisy(subject, noise), subject.backend.timer() as timer:
                step()
            times[name].append(timer.seconds * 1e3)
        if progress is not None:
            progress(round_ + 1, seeds)
    subject.model.eval()
    subject.model.zero_grad(set_to_none=True)
    for name, values in times.items():
        ratios = tuple(value / plain for value, plain in zip(values, times[NONE], strict=True))
        result.cells.append(Cell("step", name, MILLISECONDS, tuple(values)))
        result.cells.append(Cell("step", name, RATIO, ratios))
    result.compare(MILLISECONDS, [(name, NONE) for name in cases if name != NONE])
    result.statements = [
        f"{name}: {result.cell('step', name, RATIO).summary.mean:.2f} times the step without noise" for name in cases
    ][1:]
    return result


def _step(subject: Subject, ids: torch.Tensor) -> Callable[[], None]:
    model = subject.model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return step


def _noisy(subject: Subject, noise: dict[str, Any] | None) -> AbstractContextManager[Any]:
    if noise is None:
        return nullcontext()
    return inject(subject.model, AqnConfig.parse({"aqn": {"sigma": 0.05, **noise}}), subject.backend)
