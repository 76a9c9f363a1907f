"""Noise in data-parallel training: every rank reproducible, and the same as in one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import aqn
from aqn import AqnConfig
from tests.conftest import random_model

CONFIG = {"aqn": {"sigma": 0.1, "mode": "all_ops", "phases": ["actor_forward", "actor_backward"]}}
RANKS = 2

pytestmark = pytest.mark.slow  # two processes, each importing torch and transformers


def batch():
    return torch.arange(4 * 10).reshape(4, 10) % 300


def gradients(model, ids):
    """Gradient of a loss that is a mean over tokens, by name as the bare model names it."""
    model.train()
    with aqn.inject(model, AqnConfig.parse(CONFIG)) as injection:
        output = model(ids, use_cache=False).logits
        output.square().mean().backward()
    whole = {
        name.removeprefix("module."): getattr(weight.grad, "full_tensor", lambda weight=weight: weight.grad)()
        for name, weight in model.named_parameters()
    }
    return output.detach(), whole, injection.counts


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    mine = batch().chunk(RANKS)[rank]
    found = {"ddp": gradients(DistributedDataParallel(random_model("qwen2", layers=2)), mine)}
    sharded = random_model("qwen2", layers=2)
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=dist.device_mesh.init_device_mesh("cpu", (RANKS,)))
    fully_shard(sharded, mesh=dist.device_mesh.init_device_mesh("cpu", (RANKS,)))
    found["fsdp"] = gradients(sharded, mine)
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone():
    model = random_model("qwen2", layers=2)
    whole, _, counts = gradients(model, batch())
    parts = []
    for part in batch().chunk(RANKS):
        model.zero_grad()
        parts.append(gradients(model, part)[1])
    mean = {name: sum(part[name] for part in parts) / RANKS for name in parts[0]}
    return whole, mean, counts


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_each_rank_computes_its_part_of_what_one_process_computes(ranks, alone, wrapper):
    expected, mean, counts = alone
    for rank, part in enumerate(expected.chunk(RANKS)):
        output, found, counted = ranks[rank][wrapper]
        assert torch.allclose(output, part, atol=1e-4)
        assert counted == counts
        for name, gradient in mean.items():
            assert torch.allclose(found[name], gradient, atol=1e-5, rtol=1e-4), name
