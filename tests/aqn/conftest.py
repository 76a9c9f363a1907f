"""Shared by the tests of aqn: one thread, token ids, and configurations in one line."""

from __future__ import annotations

import pytest
import torch

from aqn import AqnConfig

torch.set_num_threads(1)

IDS = torch.arange(24).reshape(2, 12) % 300


@pytest.fixture
def ids():
    return IDS.clone()


@pytest.fixture
def configure():
    """A configuration that also disturbs evaluation, because tests run their models in that mode."""

    def make(deadzone=None, **noise):
        document = {"aqn": {"phases": ["rollout", "actor_forward", "validation"], **noise}} if noise else {}
        if deadzone:
            document["deadzone"] = deadzone
        return AqnConfig.parse(document)

    return make
