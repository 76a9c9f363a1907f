"""Which layers of a student and a teacher are compared."""

from __future__ import annotations

from hal.errors import UsageError

LayerChoice = str | list[int]


def teacher_layer(layer: int, student_layers: int, teacher_layers: int) -> int:
    """The teacher's layer at the depth of the student's `layer`: both ends meet, the last layers first."""
    return -(-(layer + 1) * teacher_layers // student_layers) - 1


def chosen_layers(choice: LayerChoice, layers: int) -> list[int]:
    """The student's layers called "middle", "last", "all", or listed; UsageError for others."""
    named = {"middle": [(layers - 1) // 2], "last": [layers - 1], "all": list(range(layers))}
    if isinstance(choice, str):
        if choice not in named:
            raise UsageError(f"layers '{choice}' are unknown: choose {', '.join(named)}, or list their numbers")
        return named[choice]
    wrong = [layer for layer in choice if not 0 <= layer < layers]
    if wrong or not choice:
        raise UsageError(f"layers {choice} must be one or more numbers from 0 to {layers - 1}, the student's")
    return choice


def layer_pairs(choice: LayerChoice, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """The chosen layers of the student, each with the teacher's at the same depth."""
    chosen = chosen_layers(choice, student_layers)
    return [(layer, teacher_layer(layer, student_layers, teacher_layers)) for layer in chosen]
