"""Exact noise is the same on the simulated npu as on the host, also when the device's arithmetic is hostile."""

from __future__ import annotations

import pytest
import torch

import aqn
from aqn import AqnConfig, DeadzoneInjector
from aqn.noise import Stream, forward_noise
from aqn.tokens import token_rows

HOSTILE = {"reorder": True, "flush_subnormal": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "positions", [torch.arange(5, 12), torch.tensor([[0, 1, 5, 6, 7, 9, 11]]), torch.arange(14).view(2, 7)], ids=str
)
def test_noise_on_a_result_has_the_hosts_bits(device, arithmetic, dtype, positions):
    x = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    stream = Stream(3, 5, "exact")
    expected = forward_noise(x, 0.05, stream, token_rows(positions, 2))
    with arithmetic(**HOSTILE):
        found = forward_noise(x.to(device), 0.05, stream, token_rows(positions.to(device), 2))
    assert found.device == device
    assert torch.equal(found.cpu(), expected)


def noises(model, ids, config):
    """The factor by which noise changed each linear's result in layer 1, on the host."""
    seen = {}

    def keep(name):
        return lambda _m, _a, out: seen.setdefault(name, []).append(out.detach().cpu())

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.model.layers[1].named_modules()
        if name.endswith("_proj")
    ]
    with torch.no_grad(), aqn.inject(model, config) as injection:
        model(ids)
    for handle in handles:
        handle.remove()
    return seen, injection.counts


def test_a_models_first_noisy_product_and_all_counts_agree(make_model, npu):
    config = AqnConfig.parse(
        {"aqn": {"sigma": 0.05, "mode": "all_ops", "target_layers": [1], "phases": ["validation"]}}
    )
    ids = torch.arange(24).reshape(2, 12)
    on_host, host_counts = noises(make_model("qwen2", layers=2), ids, config)
    on_npu, npu_counts = noises(make_model("qwen2", layers=2).to(npu.device), ids.to(npu.device), config)
    assert npu_counts == host_counts
    for name, (expected,) in on_host.items():
        assert torch.allclose(on_npu[name][0], expected, rtol=1e-4, atol=1e-5), name


def test_training_with_noise_both_ways_runs_and_is_restored(make_model, npu):
    model = make_model("qwen2", layers=2).to(npu.device).train()
    ids = torch.arange(24).reshape(2, 12).to(npu.device)
    config = AqnConfig.parse(
        {
            "aqn": {"sigma": 0.05, "phases": ["actor_forward", "actor_backward"]},
            "deadzone": {"layer": 1, "threshold": 0.05, "scope": "token"},
        }
    )
    with torch.no_grad():
        clean = model(ids).logits
    with aqn.inject(model, config, npu) as injection:
        model(ids).logits.square().mean().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
    assert {hit.phase for hit in injection.counts} == {"actor_forward", "actor_backward"}
    with torch.no_grad():
        assert torch.equal(model(ids).logits, clean)


def test_the_dead_zone_has_the_hosts_bits(device):
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    for order in ("before", "after"):
        options = {"noise": order, "sigma": 0.3, "sparsity": 0.5}
        found = DeadzoneInjector(0, 0.1, **options)(x.to(device))
        assert torch.equal(found.cpu(), DeadzoneInjector(0, 0.1, **options)(x))
