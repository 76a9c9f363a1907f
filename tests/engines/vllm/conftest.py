"""Running engines, one of each kind for all tests, and the same model as a trainer holds it."""

from __future__ import annotations

import pytest
import torch

from hal.engines.vllm import VllmEngine
from tests.engines.vllm.rollout import MODEL, PROMPTS, start, stop


@pytest.fixture(scope="session")
def engine():
    llm = start()
    yield VllmEngine(llm)
    stop(llm)


@pytest.fixture(scope="session")
def parallel_engine():
    """The same model over two processes."""
    llm = start(tensor_parallel_size=2)
    yield VllmEngine(llm)
    stop(llm)


@pytest.fixture(scope="session")
def trainer():
    """The same model as transformers runs it, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="sdpa").eval()


@pytest.fixture(scope="session")
def ids():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
