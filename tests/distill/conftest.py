"""One thread, and small random models with a batch in which one example is shorter."""

from __future__ import annotations

import pytest
import torch

from distill.forward_pass import run_pass
from tests.conftest import random_model

IDS = torch.arange(24).reshape(2, 12) % 300


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def batch():
    mask = torch.ones_like(IDS)
    mask[1, 8:] = 0  # padding on the right
    labels = IDS.masked_fill(mask == 0, -100)
    return {"input_ids": IDS, "attention_mask": mask, "labels": labels}


@pytest.fixture(scope="session")
def passes(batch):
    """A pass of each of some models, with attention: two of one shape, one that is shallower and wider."""
    made = {
        "teacher": random_model("qwen2", layers=4, hidden=64),
        "other": random_model("llama", layers=4, hidden=64),
        "student": random_model("qwen2", layers=2, hidden=32),
    }
    with torch.no_grad():
        return {name: run_pass(model, batch, attention=True) for name, model in made.items()}
