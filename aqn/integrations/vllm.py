"""Noise and dead zone inside a running vLLM, on whatever platform it runs.

llm = LLM(model=..., enforce_eager=True, worker_extension_cls="hal.engines.vllm.WorkerExtension")
with inject(llm, AqnConfig.from_yaml("aqn_config.yaml")) as rollout:
llm.generate(...)
print(rollout.counts)
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Any

from aqn.config import AqnConfig
from aqn.hits import Hit
from aqn.integrations import worker
from aqn.integrations.counting import merge_counts, survival
from hal.engines.vllm import VllmEngine


class RolloutInjection:
    """Noise and dead zone while they are in an engine: what `inject` returns, used as a context manager. Setting `step`
    sets the strength by the schedule, as in `aqn.inject`. `counts` says how often each `Hit` was disturbed in a
    process, the same in all that share a layer; it stays readable after the block.
    """

    def __init__(self, engine: VllmEngine, config: AqnConfig, steps: int | None, epochs: int | None) -> None:
        self.config = config
        self._engine = engine
        self._run = {"steps": steps, "epochs": epochs}
        self._states: list[dict[str, Any]] = []
        self._active = False

    def __enter__(self) -> RolloutInjection:
        """Install it in every worker; cached prefixes are forgotten."""
        document = self.config.model_dump(mode="json", by_alias=True, exclude_none=True)
        self._states = self._engine.change(worker.install, document=document, **self._run)
        self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it out of every worker; cached prefixes are forgotten. Without an exception on its way, raises
        EngineError when noise or dead zone never acted.
        """
        self._refresh()
        self._active = False
        self._engine.change(worker.remove, check=error is None)

    @property
    def step(self) -> int:
        """The step in force, counted from 0."""
        return int(self._states[0]["step"])

    @step.setter
    def step(self, step: int) -> None:
        self._states = self._engine.change(worker.set_step, step=step, phase="rollout")

    @property
    def sigma(self) -> float:
        """The base strength in force."""
        return float(self._states[0]["sigma"])

    @property
    def counts(self) -> Counter[Hit]:
        """How often each hit was disturbed since the block began."""
        self._refresh()
        return merge_counts(self._states)

    @property
    def survival_rate(self) -> float:
        """The share of values in the dead zone that noise carried through it; NaN when there were none."""
        self._refresh()
        return survival(self._states)

    @property
    def deadzone_calls(self) -> int:
        """How often the dead zone acted in the process that holds its layer."""
        self._refresh()
        return max(int(entry["deadzone"]["calls"]) for entry in self._states)

    def _refresh(self) -> None:
        if self._active:
            self._states = self._engine.call(worker.state)


def inject(llm: Any, config: AqnConfig, *, steps: int | None = None, epochs: int | None = None) -> RolloutInjection:
    """Noise and dead zone of `config` inside the engine of `llm`, a `vllm.LLM` started with `enforce_eager=True` and
    our worker extension (or a `VllmEngine`). Raises EngineError for an engine that cannot carry them, UsageError for a
    configuration that means something else in an engine than in training.
    """
    return RolloutInjection(llm if isinstance(llm, VllmEngine) else VllmEngine(llm), config, steps, epochs)
