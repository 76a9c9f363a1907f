"""verl's actor with noise and dead zone in its model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils
from verl.workers.engine_workers import ActorRolloutRefWorker

from aqn.config import AqnConfig
from aqn.injection import Injection
from aqn.integrations.worker import describe
from hal.errors import EngineError


class AqnActorWorker(ActorRolloutRefWorker):  # type: ignore[misc]  # verl is untyped
    """The actor, whose forward and backward passes carry what was installed; the reference policy, a model of its own
    or the actor without its adapter, carries nothing.
    """

    _injection: Injection | None = None

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def aqn_install(self, document: dict[str, Any], steps: int, epochs: int) -> dict[str, Any]:
        """Put the configuration into the actor's model; see `describe` for what comes back."""
        module = self.actor.engine.module
        if isinstance(module, (list, tuple)):
            raise EngineError(
                "this actor is a list of pipeline chunks, which is not supported: choose strategy fsdp or fsdp2"
            )
        injection = Injection(module, AqnConfig.parse(document), steps, epochs)
        injection.__enter__()
        injection.phase = "validation"
        self._injection = injection
        return describe(injection)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def aqn_set(self, step: int, phase: str) -> dict[str, Any]:
        """Go to a step, counted from 0, in a phase."""
        injection = self._installed()
        injection.phase = phase  # type: ignore[assignment]  # an unknown one is refused by the setter
        injection.step = step
        return describe(injection)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def aqn_state(self) -> dict[str, Any]:
        """Step, phase, sigma and hits in this process."""
        return describe(self._installed())

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))  # type: ignore[untyped-decorator]
    def compute_log_prob(self, data: Any) -> Any:
        """As verl's, without noise where the actor stands in for the reference policy."""
        reference = tensordict_utils.get_non_tensor_data(data=data, key="no_lora_adapter", default=False)
        clean = self._installed().during("validation") if reference and self._injection else nullcontext()
        with clean:
            return super().compute_log_prob(data)

    def _installed(self) -> Injection:
        if self._injection is None:
            raise EngineError("there is neither noise nor dead zone in this actor: install a configuration first")
        return self._injection
