"""Scan and evaluate a model as it is, then with one part computed elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hal.backend import NumericMode, TorchBackend
from hal.detour import detour
from hal.errors import UsageError
from hal.model_weights import ModelWeights
from hal.models import DTYPES
from hal.structure import LayerStack, evaluation_mode, find_layer_stack
from srdd.batch import pack
from srdd.prompts import DEFAULT
from srdd.scan import scan
from srdd.verify_fix.outcome import Change, Outcome
from srdd.verify_fix.task import Task

Step = Callable[[str], None]


def place(
    model: nn.Module, layer: int | None, site: str = "", operator: str = "", dtype: str = "float32", host: bool = False
) -> Change:
    """Say what to run where: `site` is a module below layer `layer` ("mlp.down_proj"), empty for the layer itself; with
    layer None, the full name of a module outside the layers ("lm_head"). Raises UsageError for a dtype that there is
    not, or that is the part's own so that nothing would change, for a site that is missing or in a layer, and
    ModelError or HookError for a place that the model does not have.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}': choose one of {', '.join(DTYPES)}")
    name = _name(find_layer_stack(model), layer, site)
    with detour(model, name, operator):  # which names what is wrong with the place
        part = model.get_submodule(name)
    own = {parameter.dtype for parameter in part.parameters() if parameter.is_floating_point()}
    if own == {DTYPES[dtype]} and not host:
        raise UsageError(f"{name} is in {dtype} already: choose another --dtype, or --host")
    return Change(layer, name, operator, dtype, host)


def _name(stack: LayerStack, layer: int | None, site: str) -> str:
    if layer is not None:
        return stack.site(layer) + (f".{site}" if site else "")
    if not site:
        raise UsageError("nothing to rerun: give --layer, or --site with the full name of a module outside the layers")
    if stack.holds(site):
        raise UsageError(f"site {site} belongs to a layer: give --layer, and --site with its name below that layer")
    return site


def verify_fix(
    model: nn.Module,
    tokenizer: Any | None,
    backend: TorchBackend,
    change: Change,
    task: Task | None = None,
    *,
    prompts: Sequence[str] | None = None,
    level: str = "full",
    checkpoint: Path | None = None,
    tokens: int | None = None,
    step: Step = lambda _: None,
) -> Outcome:
    """Scan `model` and run `task`, both as it is and with `change`, and compare. `prompts`, `level`, `checkpoint` and
    `tokens` are the scan's; the changed part takes its weights from `checkpoint` too. `step` is told what begins. The
    model is left as it was. Raises UsageError, at once, when the model never runs the part to be changed.
    """
    _require_use(model, tokenizer, backend, change)
    look = partial(scan, model, tokenizer, backend, prompts, level, checkpoint=checkpoint, tokens=tokens)
    step("scanning")
    before = look()
    step("running the task")
    was = _run(task, model, tokenizer, backend)
    weights = ModelWeights(model, find_layer_stack(model), checkpoint) if checkpoint else None
    with detour(
        model, change.site, change.operator, dtype=DTYPES[change.dtype], host=change.host, weights=weights
    ) as taken:
        step(f"scanning with {change}")
        after = look()
        step(f"running the task with {change}")
        now = _run(task, model, tokenizer, backend)
    return Outcome(change, before, after, task.compare(was, now) if task else None, taken.calls)


def _require_use(model: nn.Module, tokenizer: Any | None, backend: TorchBackend, change: Change) -> None:
    ids = pack(tokenizer, DEFAULT, model)[:1]
    with torch.no_grad(), evaluation_mode(model), detour(model, change.site, change.operator) as taken:
        model(ids.to(backend.device))
    if not taken.calls:
        raise UsageError(f"{change}: the model never calls that; choose another site or operator")


def _run(task: Task | None, model: nn.Module, tokenizer: Any, backend: TorchBackend) -> Sequence[float]:
    if task is None:
        return ()
    with torch.no_grad(), evaluation_mode(model), backend.numeric_mode(NumericMode(deterministic=True)):
        return task.run(model, tokenizer)


def can_generate(model: nn.Module) -> bool:
    """Whether the model is a causal language model, which the tasks are for."""
    asked = getattr(model, "can_generate", None)
    return bool(asked()) if callable(asked) else False
