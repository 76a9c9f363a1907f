"""Keep the injection in step with a Hugging Face trainer, and write down how training goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from aqn.injection import Injection

KEPT = ("reward", "loss", "grad_norm", "entropy")


class StepCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Sets the injection's step before each training step, and calls `note(step, values)` with what was logged."""

    def __init__(self, injection: Injection | None, note: Callable[[int, dict[str, float]], None]) -> None:
        self._injection = injection
        self._note = note

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Step and noise begin."""
        if self._injection is not None and self._injection.step != state.global_step:
            self._injection.step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Keep the numbers of a step."""
        values = {name: float(value) for name, value in (logs or {}).items() if name in KEPT}
        if values:
            if self._injection is not None:
                values["sigma"] = self._injection.sigma
            self._note(int(state.global_step), values)
