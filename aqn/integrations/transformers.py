"""Noise and dead zone in a training run of Hugging Face's `Trainer`, and of everything built on it.

callback = AqnCallback(AqnConfig.from_yaml("aqn_config.yaml"))
Trainer(model=model, args=args, train_dataset=data, callbacks=[callback]).train()
"""

from __future__ import annotations

import math
from collections import Counter
from types import TracebackType
from typing import Any

import torch
from transformers import TrainerCallback

from aqn.config import AqnConfig
from aqn.hits import Hit
from aqn.injection import Injection
from hal.errors import EngineError


class AqnCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Puts the noise and dead zone of `config` into the trainer's model when training begins and takes them out when it
    ends. The strength is the schedule's at the trainer's `global_step`, so a resumed run goes on where it stopped;
    evaluation is free of noise. Positions count from a sequence's first token, whatever its padding. What the trainer
    logs gains `aqn/sigma` and `aqn/hits/PHASE`, the hits since the last log. `counts` has them all, also after
    training. Raises HookError at the end when noise hit nothing.

    A run that may fail is put into a `with` block of the callback, which then takes the hooks out.
    """

    def __init__(self, config: AqnConfig) -> None:
        self.config = config
        self.counts: Counter[Hit] = Counter()
        self._injection: Injection | None = None
        self._positions: Any = None
        self._logged: Counter[str] = Counter()

    def __enter__(self) -> AqnCallback:
        """Return the callback."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take out whatever is still in the model."""
        self.detach()

    @property
    def injection(self) -> Injection:
        """The injection while training runs; EngineError otherwise."""
        if self._injection is None:
            raise EngineError("the callback's noise is in no model: it is there from train begin to train end")
        return self._injection

    def detach(self) -> None:
        """Take everything out of the model, and ask nothing."""
        injection, self._injection = self._injection, None
        if injection is not None:
            self.counts = injection.counts
            injection.detach()
            self._positions.remove()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Put it in."""
        self.detach()
        epochs = max(1, math.ceil(args.num_train_epochs))
        injection = Injection(model, self.config, steps=state.max_steps, epochs=epochs)
        injection.__enter__()
        self._injection, self._logged, self.counts = injection, Counter(), injection.counts
        self._positions = model.register_forward_pre_hook(count_from_the_first_token, with_kwargs=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go to the trainer's step."""
        if self._injection is not None and self._injection.step != state.global_step:
            self._injection.step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Add what the noise did to what is logged of training."""
        if self._injection is None or logs is None or not any(name in logs for name in ("loss", "reward")):
            return
        found = {"aqn/sigma": self._injection.sigma, **self._hits_since_the_last_log()}
        logs.update(found)
        if state.log_history:  # the trainer keeps a copy that it made before
            state.log_history[-1].update(found)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take it out, and check that it was there."""
        injection = self._injection
        self.detach()
        if injection is not None:
            injection.require_hits()

    def _hits_since_the_last_log(self) -> dict[str, int]:
        now: Counter[str] = Counter()
        for hit, count in self.counts.items():
            now[hit.phase] += count
        phases = self.config.noise.phases if self.config.noise else ()
        found = {f"aqn/hits/{phase}": now[phase] - self._logged[phase] for phase in phases}
        self._logged = now
        return found


def count_from_the_first_token(_model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give a batch that is padded on the left the positions that `generate` gives it: without any, transformers counts
    the padding too, and a token would have other noise when it is learnt from than when it was written.
    """
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or bool(mask[:, 0].all()):
        return None
    if kwargs.get("position_ids") is not None or kwargs.get("past_key_values") is not None:
        return None
    return args, {**kwargs, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
