"""Scan the model inside a running vLLM: the rollout that is actually served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hal.engines.vllm import VllmEngine
from hal.errors import EngineError, UsageError
from srdd.batch import LENGTH, ROWS
from srdd.live import worker
from srdd.probes.measure import PROBES
from srdd.prompts import DEFAULT, require_prompts
from srdd.report.model import Report, from_json
from srdd.scan import require_options


def scan_engine(
    llm: Any,
    prompts: Sequence[str] | None = None,
    level: str = "full",
    probes: Sequence[str] = PROBES,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> tuple[Report, ...]:
    """Scan the model of `llm`, a `vllm.LLM` started with `enforce_eager=True` and our worker extension (or a
    `VllmEngine`): one report from each worker process. The prompts' tokens are one request, whose forward pass is
    measured layer by layer; the engine must have no other. Level "full" replays every layer on the host with
    transformers' module and the weights of `checkpoint`, by default the engine's own directory, so an engine whose
    weights were updated since needs a checkpoint of them. Raises UsageError for bad options, EngineError for an engine
    that cannot be scanned.
    """
    require_options(level, probes)
    engine = llm if isinstance(llm, VllmEngine) else VllmEngine(llm)
    config = engine.llm.llm_engine.vllm_config
    ids = _tokens(engine, require_prompts(list(prompts) if prompts is not None else list(DEFAULT), "prompts"))
    directory = str(checkpoint or config.model_config.model) if level == "full" else None
    if directory is not None and not Path(directory).is_dir():
        raise UsageError(f"level 'full' needs the checkpoint's directory, and {directory} is none: pass checkpoint=")
    name = Path(str(config.model_config.model)).name
    engine.change(worker.begin, name=name, checkpoint=directory, probes=list(probes), seed=seed, tokens=len(ids))
    try:
        _run(engine, ids)
    finally:
        # The layers were run on other inputs: what the cache holds of this prompt is not this model's.
        found = engine.change(worker.finish)
    return tuple(from_json(document) for document in found)


def _tokens(engine: VllmEngine, prompts: Sequence[str]) -> list[int]:
    config = engine.llm.llm_engine.vllm_config
    tokenizer = engine.llm.get_tokenizer()
    ids = [int(token) for prompt in prompts for token in tokenizer(prompt)["input_ids"]]
    limit = min(ROWS * LENGTH, config.model_config.max_model_len - 1, config.scheduler_config.max_num_batched_tokens)
    if not ids:
        raise UsageError("the prompts give no token with the engine's tokenizer: give longer prompts")
    return ids[:limit]


def _run(engine: VllmEngine, ids: list[int]) -> None:
    from vllm import SamplingParams

    try:
        engine.llm.generate([{"prompt_token_ids": ids}], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    except Exception as error:
        raise EngineError(f"the engine failed on the scan's prompt: {' '.join(str(error).split())[:200]}") from error
