"""A rollout by transformers' own `generate`, on the host: for small models, where no serving engine is at hand.
Requests that arrive together are generated in one batch.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, NamedTuple

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from hal.engines.worker import EngineWorker, outcome, results

_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens")
_GATHER_S = 0.02  # how long a batch waits for requests sent together
_BATCH = 64


class _Request(NamedTuple):
    prompt: list[int]
    sampling: tuple[tuple[str, Any], ...]
    reply: asyncio.Future[tuple[list[int], list[float]]]


class TransformersServer:
    """The Ray actor that holds the rollout's model."""

    def __init__(self, path: str, dtype: str, attention: str, response_length: int, seed: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(seed)
        self._model = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation=attention
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        self._end: int = tokenizer.eos_token_id
        self._pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._end
        self._response_length = response_length
        self._state: dict[str, Any] = {}
        self._steps: int | None = None
        self._queue: asyncio.Queue[_Request] | None = None
        self._busy = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None

    async def aqn_call(self, function: str, arguments: dict[str, Any], change: bool) -> list[Any]:
        """Run a function beside the model, between two batches; see `hal.engines.worker`."""
        async with self._busy:
            return results([outcome(self._describe, function, arguments)])

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_unused: Any
    ) -> Any:
        """Complete one prompt; verl's interface."""
        if self._queue is None:
            self._queue = asyncio.Queue()
            self._worker = asyncio.create_task(self._serve(self._queue))
        sampling = tuple(sorted((key, value) for key, value in sampling_params.items() if key in _SAMPLING))
        request = _Request(list(prompt_ids), sampling, asyncio.get_running_loop().create_future())
        await self._queue.put(request)
        tokens, logprobs = await request.reply
        return TokenOutput(
            token_ids=tokens,
            log_probs=logprobs if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            extra_fields={"global_steps": self._steps},
        )

    async def load_weights(self, weights: dict[str, torch.Tensor], global_steps: int | None) -> list[str]:
        """Take the trainer's weights; returns the names of those that it did not send."""
        async with self._busy:
            own = self._model.state_dict()
            with torch.no_grad():
                for name, value in weights.items():
                    own[name].copy_(value)
            self._steps = self._steps if global_steps is None else global_steps
        return [name for name in own if name not in weights and not name.endswith("lm_head.weight")]

    async def _serve(self, queue: asyncio.Queue[_Request]) -> None:
        while True:
            batch = [await queue.get()]
            await asyncio.sleep(_GATHER_S)
            while not queue.empty() and len(batch) < _BATCH:
                batch.append(queue.get_nowait())
            for sampling in {request.sampling for request in batch}:
                together = [request for request in batch if request.sampling == sampling]
                try:
                    async with self._busy:
                        found = await asyncio.to_thread(
                            self._generate, [request.prompt for request in together], dict(sampling)
                        )
                except Exception as error:  # noqa: BLE001 -- it belongs to whoever asked
                    for request in together:
                        request.reply.set_exception(error)
                else:
                    for request, reply in zip(together, found, strict=True):
                        request.reply.set_result(reply)

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], sampling: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        temperature = float(sampling.get("temperature", 1.0))
        options: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            options |= {
                "temperature": temperature,
                "top_p": sampling.get("top_p", 1.0),
                "top_k": max(sampling.get("top_k", 0), 0),
            }
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sampling.get("max_tokens") or self._response_length,
            pad_token_id=self._pad,
            eos_token_id=self._end,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        tokens = output.sequences[:, width:]
        scores = torch.stack([score.float().log_softmax(-1) for score in output.scores], dim=1)
        chosen = scores.gather(-1, tokens[..., None])[..., 0]
        return [self._until_end(row, values) for row, values in zip(tokens.tolist(), chosen.tolist(), strict=True)]

    def _until_end(self, tokens: list[int], logprobs: list[float]) -> tuple[list[int], list[float]]:
        stop = tokens.index(self._end) + 1 if self._end in tokens else len(tokens)
        return tokens[:stop], logprobs[:stop]

    def _describe(self) -> EngineWorker:
        return EngineWorker(self._model, 0, 1, "", self._state)

    # What verl asks of a server and a model on the host does not need: nothing is ever put away.

    def wake_up(self, tags: Any = None) -> None:
        """Nothing sleeps."""

    def sleep(self) -> None:
        """Nothing sleeps."""

    def clear_kv_cache(self) -> None:
        """No cache outlives a batch."""

    def release_kv_cache(self) -> None:
        """No cache outlives a batch."""

    def resume_kv_cache(self) -> None:
        """No cache outlives a batch."""

    def abort_all_requests(self, reject_request: bool = False) -> None:
        """Batches are short: they are let finish."""

    def resume_generation(self) -> None:
        """Generation never stops."""

    def start_profile(self, **_options: Any) -> None:
        """There is no profile."""

    def stop_profile(self) -> None:
        """There is no profile."""


class TransformersReplica(RolloutReplica):  # type: ignore[misc]  # verl is untyped
    """One server beside each rank of the trainer."""

    async def launch_servers(self) -> None:
        """Start it, and wait until it holds its model."""
        attention = (self.model_config.override_config or {}).get("attn_implementation", "sdpa")
        actor: Any = ray.remote(TransformersServer)
        server = actor.options(name=_name(self.replica_rank), num_cpus=0, max_concurrency=1000).remote(
            self.model_config.path,
            self.config.dtype,
            attention,
            self.config.response_length,
            self.replica_rank + self.config.seed,
        )
        await server.wake_up.remote()
        self.servers, self._server_handle = [server], server
        self._server_address = f"transformers:{self.replica_rank}"


class TransformersAdapter(BaseRollout):  # type: ignore[misc]  # verl is untyped
    """The trainer's side: sends weights."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, **_unused: Any) -> None:
        super().__init__(config, model_config, device_mesh)
        self._rank = int(os.environ["RANK"])
        self._server: Any = None

    async def resume(self, tags: Any) -> None:
        """Nothing was put away."""

    async def release(self) -> None:
        """Nothing is put away."""

    async def update_weights(
        self, weights: Any, global_steps: int | None = None, wire_format: str = "named_tensors", **_unused: Any
    ) -> None:
        """Send the full weights."""
        if wire_format != "named_tensors":
            raise NotImplementedError(f"weights as '{wire_format}': this rollout takes named_tensors")
        if self._server is None:
            self._server = ray.get_actor(_name(self._rank))
        sent = {name: value.detach().cpu().clone() for name, value in weights}
        missing = await self._server.load_weights.remote(ray.put(sent), global_steps)
        if missing:
            raise RuntimeError(f"the trainer did not send {missing[0]} (and {len(missing) - 1} more)")


def _name(rank: int) -> str:
    return f"transformers_server_{rank}"
