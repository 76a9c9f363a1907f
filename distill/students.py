"""The models of a distillation: teachers, and a student that is loaded or cut from one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.losses.layers import teacher_layer
from hal.backend import TorchBackend
from hal.errors import UsageError
from hal.models import LoadedModel, load_model
from hal.structure import LayerStack, find_layer_stack


@dataclass(frozen=True)
class Models:
    """A `student` in training mode and its frozen `teachers` on one device, the `tokenizer` they share, and `names`,
    the student's first.
    """

    student: nn.Module
    teachers: tuple[nn.Module, ...]
    tokenizer: Any
    names: tuple[str, ...]


def load_models(
    backend: TorchBackend,
    teachers: Sequence[Path],
    student: Path | None,
    layers: int | None,
    dtype: str,
    trust_remote_code: bool = False,
) -> Models:
    """Load the checkpoints `teachers` and `student`; without a student one is cut from the first teacher, with so many
    `layers` (None: half of them). Raises UsageError where tokenizers differ, because the models would be compared at
    different tokens.
    """
    if student is not None and layers is not None:
        raise UsageError(f"--student-layers {layers} cuts a student from the teacher, and --student brings one")
    directories = [*teachers, *([] if student is None else [student])]
    loaded = [load_model(directory, backend, dtype, trust_remote_code) for directory in directories]
    for entry in loaded:
        _require_usable(entry, loaded[0])
    frozen = tuple(entry.model.requires_grad_(False) for entry in loaded[: len(teachers)])
    made = shallower(frozen[0], layers) if student is None else loaded[-1].model
    name = f"{teachers[0].name} cut" if student is None else student.name
    names = (name, *(directory.name for directory in teachers))
    return Models(made.train().requires_grad_(True), frozen, loaded[0].tokenizer, names)


def require_positions(models: Models, tokens: int) -> None:
    """Raise UsageError when one of the models has fewer positions than `tokens`."""
    for name, model in zip(models.names, (models.student, *models.teachers), strict=True):
        config: Any = model.config
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        if most is not None and tokens > most:
            raise UsageError(f"--max-tokens {tokens}: {name} has {most} positions; give {most} or less")


def _require_usable(entry: LoadedModel, teacher: LoadedModel) -> None:
    """Refuse a model that predicts no next token, or other tokens than `teacher`."""
    model: Any = entry.model
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise UsageError(
            f"{entry.directory} holds a {type(model).__name__}: distillation needs models that predict the next token"
        )
    if entry.tokenizer is None or teacher.tokenizer is None:
        raise UsageError(f"{entry.directory} has no tokenizer: distillation works on text")
    if entry.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise UsageError(
            f"{entry.directory} and {teacher.directory} have different tokenizers: student and teachers must share one"
        )


def shallower(teacher: Any, layers: int | None = None) -> nn.Module:
    """A student of the teacher's class and width with `layers` of its layers (None: half), evenly spaced and its last
    one among them, and everything around them, to the bit and in the same dtypes. Raises UsageError for a number that
    leaves none, or none out, and for layers that differ by their position.
    """
    stack = find_layer_stack(teacher)
    number = max(1, len(stack) // 2) if layers is None else layers
    if not 1 <= number < len(stack):
        raise UsageError(f"{number} student layers: the teacher has {len(stack)}, choose 1 to {len(stack) - 1}")
    kept = [teacher_layer(layer, number, len(stack)) for layer in range(number)]
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = number
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept]
    student: Any = type(teacher)(config)
    try:
        student.load_state_dict(_of_layers(kept, stack, teacher.state_dict()))
    except RuntimeError as error:
        raise UsageError(f"layers of {type(teacher).__name__} differ by position: give --student") from error
    _take_over(student.to(next(teacher.parameters()).device), _of_layers(kept, stack, _tensors(teacher)))
    student.generation_config = copy.deepcopy(teacher.generation_config)
    made: nn.Module = student.train(teacher.training)
    return made


def _of_layers(kept: Sequence[int], stack: LayerStack, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the layers that are `kept`, under the names they have in the student, and those around all layers."""
    places = {old: new for new, old in enumerate(kept)}
    found = {}
    for name, value in tensors.items():
        layer = stack.layer_of(name)
        if layer is None:
            found[name] = value
        elif layer in places:
            found[stack.site(places[layer]) + name.removeprefix(stack.site(layer))] = value
    return found


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, also those that no checkpoint holds: rotary frequencies stay in float32 when a model is
    loaded in bfloat16, and a cast of the whole student would round them.
    """
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _take_over(student: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give the student copies of these `tensors` wherever it has one of that name and shape."""
    for name, value in _tensors(student).items():
        if name in tensors and tensors[name].shape == value.shape:
            value.data = tensors[name].detach().clone()
