"""verl's vLLM rollout with our functions in its workers."""

from __future__ import annotations

from typing import Any

import ray
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from aqn.integrations.verl import host
from hal.engines import vllm as engine
from hal.engines.worker import results
from hal.errors import EngineError


class WorkerExtension(vLLMColocateWorkerExtension, engine.WorkerExtension):  # type: ignore[misc]  # verl is untyped
    """verl's extension of vLLM's workers and ours."""

    def __new__(cls, **options: Any) -> Any:
        """As verl's; on the host it keeps the weights that verl will overwrite."""
        if host.chosen():
            _keep_weights()
        return super().__new__(cls, **options)


class AqnServer(vLLMHttpServer):  # type: ignore[misc]  # as above
    """verl's server, which hands on calls to functions in its workers and what they return."""

    async def aqn_call(self, function: str, arguments: dict[str, Any], change: bool) -> list[Any]:
        """Run the function of that name in every worker. A `change` of the model drops cached prefixes before, so
        that it fails while requests run, and after.
        """
        if change:
            await self._forget_prefixes()
        answers = await self.engine.collective_rpc("hal_call", args=(function, arguments))
        if change:
            await self._forget_prefixes()
        return results(answers)

    async def _forget_prefixes(self) -> None:
        if not await self.engine.reset_prefix_cache():
            raise EngineError("requests are running, so their cached prefixes cannot be dropped: wait until none is")

    def _get_worker_extension_cls(self) -> str:
        return f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}"


class AqnReplica(vLLMReplica):  # type: ignore[misc]  # as above
    """verl's replica, with our server."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.server_class = ray.remote(AqnServer)


def _keep_weights() -> None:
    """VLLM's build for hosts packs linear weights into a form of its own and drops the originals, which verl then
    cannot find when it sends new ones: compute from the originals instead.
    """
    import torch
    import vllm.model_executor.layers.utils as layers

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    layers.dispatch_cpu_unquantized_gemm = plain
