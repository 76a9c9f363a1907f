"""What a dead zone does to activations and to the gradients that reach each layer, and what noise changes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import nn

from aqn.config import AqnConfig
from aqn.experiments.plan import Plan, Progress
from aqn.experiments.result import Cell, Result, environment
from aqn.experiments.subject import Entry, Subject
from aqn.injection import inject
from hal.hooks import Hooks
from hal.structure import evaluation_mode, find_layer_stack

DEADZONE, TARGETED, GLOBAL = "Deadzone only", "Targeted AQN", "Global AQN"
RATIO, COSINE, ZEROS = "gradient size over clean", "cosine with the clean gradient", "zeros in the layer's output"
PAIRS: Final = ((TARGETED, DEADZONE), (GLOBAL, DEADZONE), (TARGETED, GLOBAL))

_Gradients = list[torch.Tensor]


def run_gradient_flow(subject: Subject, plan: Plan, progress: Progress | None = None) -> Result:
    """For the first layer and threshold of `plan`: at every layer the size of its weights' gradient over the clean one,
    the angle between both, and the share of zeros in its output.
    """
    layer, threshold = plan.points()[0]
    depth = len(find_layer_stack(subject.model))
    result = Result(
        "gradient_flow",
        f"Gradients under a dead zone at layer {layer}, threshold {threshold:g}: {subject.name}, sigma {plan.sigma}",
        {"layer": layer, "threshold": threshold, "sigma": plan.sigma, "samples": plan.samples, "seeds": plan.seeds},
        environment(subject.backend.versions()),
    )
    rows: dict[tuple[int, str, str], list[float]] = {}
    for seed in range(plan.seeds):
        entries = subject.draw(plan.samples, seed)
        clean, _ = _gradients(subject, entries, None)
        for condition, layers in ((DEADZONE, None), (TARGETED, [layer]), (GLOBAL, list(range(depth)))):
            config = plan.config(layer, threshold, seed, layers, ["validation", "actor_forward"])
            found, zeros = _gradients(subject, entries, config)
            _note(rows, condition, found, clean, zeros)
        if progress is not None:
            progress(seed + 1, plan.seeds)
    for (at, condition, measure), values in rows.items():
        result.cells.append(Cell(f"layer {at}", condition, measure, tuple(values)))
    result.compare(COSINE, PAIRS)
    result.statements = [_statement(result, first, second, depth) for first, second in PAIRS]
    return result


def _statement(result: Result, first: str, second: str, depth: int) -> str:
    entries = [entry for entry in result.comparisons if (entry.first, entry.second) == (first, second)]
    nearer = sum(entry.verdict == "higher" for entry in entries)
    farther = sum(entry.verdict == "lower" for entry in entries)
    return (
        f"{first} against {second}: the gradient is nearer to the clean one at {nearer} of {depth} layers, farther at "
        f"{farther}, not told apart at {len(entries) - nearer - farther} (paired t-tests, Holm over all)"
    )


def _gradients(subject: Subject, entries: Sequence[Entry], config: AqnConfig | None) -> tuple[_Gradients, list[float]]:
    """The gradient of each layer's weights, flat float32 on the host, and the share of zeros in each layer's output."""
    model = subject.model
    scope = inject(model, config, subject.backend) if config is not None else nullcontext()
    with evaluation_mode(model), _zero_counts(model) as shares, scope:
        model.zero_grad(set_to_none=True)
        for start in range(0, len(entries), 16):
            _loss(subject, entries[start : start + 16]).backward()  # type: ignore[no-untyped-call]  # torch's
    layers = find_layer_stack(model).layers
    gradients = [
        torch.cat([weight.grad.flatten().float().cpu() for weight in each.parameters() if weight.grad is not None])
        for each in layers
    ]
    model.zero_grad(set_to_none=True)
    return gradients, [sum(values) / len(values) for values in shares]


def _loss(subject: Subject, entries: Sequence[Entry]) -> torch.Tensor:
    inputs = subject.tokenizer(
        [entry.text for entry in entries],
        add_special_tokens=False,
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=512,
        return_token_type_ids=False,
        return_tensors="pt",
    ).to(subject.backend.device)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loss: torch.Tensor = subject.model(**inputs, labels=labels, use_cache=False).loss
    return loss


@contextmanager
def _zero_counts(model: nn.Module) -> Iterator[list[list[float]]]:
    """For each layer the share of exact zeros in each of its outputs. Attached first, so seen before the fault; hooks
    run in their order, which is why these look at the next layer's input instead.
    """
    stack = find_layer_stack(model)
    shares: list[list[float]] = [[] for _ in stack.layers]

    def note(layer: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = kwargs.get("hidden_states", args[0] if args else None)
            if isinstance(hidden, torch.Tensor):
                shares[layer].append(float((hidden == 0).float().mean()))

        return see

    with Hooks(model) as hooks:
        for layer in range(1, len(stack)):
            hooks.observe_arguments(stack.site(layer), note(layer - 1))
        shares[-1].append(0.0)  # nobody takes the last layer's output but the head
        yield shares


def _note(
    rows: dict[tuple[int, str, str], list[float]],
    condition: str,
    found: _Gradients,
    clean: _Gradients,
    zeros: list[float],
) -> None:
    for layer, (now, before) in enumerate(zip(found, clean, strict=True)):
        size = float(now.norm() / before.norm())
        cosine = float(torch.nn.functional.cosine_similarity(now, before, dim=0))
        for measure, value in ((RATIO, size), (COSINE, cosine), (ZEROS, zeros[layer])):
            rows.setdefault((layer, condition, measure), []).append(value)
