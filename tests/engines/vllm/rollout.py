"""Start a real vLLM on the bundled model, and compare what it says with what transformers says."""

from __future__ import annotations

import numpy as np
import torch

import hal.bundled
from hal.engines.vllm import EXTENSION

MODEL = str(hal.bundled.model_dir())
VOCABULARY = 512
PROMPTS = ("The quick brown fox jumps over the lazy dog.", "Q: 27 + 58 =", "0123456789 " * 4)
PARITY = 1e-4


def start(**options):
    """A vLLM engine on the bundled model in float32, eager, with our worker extension."""
    from vllm import LLM

    return LLM(
        **{
            "model": MODEL,
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 512,
            "max_logprobs": -1,
            "disable_log_stats": True,
            "seed": 0,
            "worker_extension_cls": EXTENSION,
            **options,
        }
    )


def stop(llm):
    llm.llm_engine.engine_core.shutdown()


def rollout_logprobs(engine, ids, batched=False):
    """Full log-probabilities of every prompt token but the first, an array [tokens - 1, vocabulary] a prompt."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1)
    prompts = [{"prompt_token_ids": list(sequence)} for sequence in ids]
    groups = [prompts] if batched else [[prompt] for prompt in prompts]
    outputs = [out for group in groups for out in engine.llm.generate(group, sampling, use_tqdm=False)]
    return [_table(output.prompt_logprobs[1:]) for output in outputs]


def _table(rows):
    table = np.empty((len(rows), VOCABULARY), np.float32)
    for line, row in zip(table, rows, strict=True):
        line[list(row)] = [entry.logprob for entry in row.values()]
    return table


def trainer_logprobs(model, ids):
    with torch.no_grad():
        logits = [model(torch.tensor([sequence])).logits[0, :-1] for sequence in ids]
    return [torch.log_softmax(rows.float(), -1).numpy() for rows in logits]


def difference(left, right):
    """The largest difference of log-probabilities over all prompts."""
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


def greedy(engine, ids, tokens=24):
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    prompts = [{"prompt_token_ids": list(sequence)} for sequence in ids]
    return [list(out.outputs[0].token_ids) for out in engine.llm.generate(prompts, sampling, use_tqdm=False)]
