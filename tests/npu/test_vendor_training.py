"""Autograd, modules, optimisers and mixed precision on torch_npu."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_hooks_fire_in_order(device):
    order = []
    layer = nn.Linear(3, 3).to(device)
    layer.register_forward_hook(lambda *_: order.append("forward"))
    layer.register_full_backward_hook(lambda *_: order.append("backward"))
    x = torch.randn(2, 3, device=device, requires_grad=True)
    x.register_hook(lambda grad: order.append(grad.device.type))
    layer(x).sum().backward()
    assert order == ["forward", "backward", "npu"]
    assert x.grad.device == device


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        pytest.param(lambda: nn.Linear(4, 3), (5, 4), id="linear"),
        pytest.param(lambda: nn.Conv2d(3, 4, 3), (1, 3, 8, 8), id="conv2d"),
        pytest.param(lambda: nn.LayerNorm(4), (5, 4), id="layer norm"),
        pytest.param(lambda: nn.RMSNorm(4), (5, 4), id="rms norm"),
        pytest.param(lambda: nn.BatchNorm1d(4), (5, 4), id="batch norm"),
        pytest.param(lambda: nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4)), (5, 4), id="mlp"),
        pytest.param(lambda: nn.MultiheadAttention(4, 2), (5, 4), id="attention"),
    ],
)
def test_modules_train_as_on_the_host(npu, module, shape):
    import hal

    host = module()
    ours = copy.deepcopy(host).to(npu.device)
    x = torch.randn(shape)
    with npu.numeric_mode(hal.NumericMode()):
        for layer, value in ((host, x), (ours, x.to(npu.device))):
            inputs = (value,) * 3 if isinstance(layer, nn.MultiheadAttention) else (value,)
            output = layer(*inputs)
            (output[0] if isinstance(output, tuple) else output).square().sum().backward()
    for expected, actual in zip(host.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(actual.grad.cpu(), expected.grad)


def test_cross_entropy(device):
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, -100])
    losses = [nn.functional.cross_entropy(logits.to(place), labels.to(place)).cpu() for place in (device, "cpu")]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_adamw(device, options):
    results = []
    for place in (device, "cpu"):
        parameter = nn.Parameter(torch.linspace(0, 1, 4, device=place))
        optimiser = torch.optim.AdamW([parameter], lr=0.1, **options)
        for _ in range(3):
            optimiser.zero_grad()
            parameter.square().sum().backward()
            optimiser.step()
        results.append(parameter.detach().cpu())
    torch.testing.assert_close(*results)


def test_gradients_are_clipped(device):
    parameter = nn.Parameter(torch.ones(4, device=device))
    parameter.square().sum().backward()
    assert nn.utils.clip_grad_norm_([parameter], 1.0).item() == pytest.approx(4.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_autocast(device):
    layer = nn.Linear(4, 4).to(device)
    with torch.autocast("npu", dtype=torch.bfloat16):
        product = layer(torch.randn(2, 4, device=device))
        probabilities = torch.softmax(product, -1)
    product.float().sum().backward()
    assert (product.dtype, probabilities.dtype, layer.weight.grad.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )


def test_grad_scaler(device):
    parameter = nn.Parameter(torch.ones(4, device=device))
    optimiser, scaler = torch.optim.SGD([parameter], lr=0.5), torch.amp.GradScaler("npu")
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimiser)
    scaler.update()
    assert parameter.tolist() == [0.5] * 4
    assert scaler.get_scale() == 65536.0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_repeats_dropout(device, reentrant):
    layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).to(device)
    x = torch.randn(2, 4, device=device, requires_grad=True)
    output = checkpoint(layer, x, use_reentrant=reentrant)
    output.sum().backward()
    kept = (output != 0).float()
    torch.testing.assert_close(x.grad, kept * 2 @ layer[0].weight)


def test_dropout_scales_what_it_keeps(device):
    kept = nn.functional.dropout(torch.ones(4000, device=device), 0.25)
    assert sorted(kept.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)


def test_a_custom_function_has_its_gradient(device):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * ctx.saved_tensors[0] * grad

    x = torch.full((2,), 3.0, device=device, requires_grad=True)
    Square.apply(x).sum().backward()
    assert x.grad.tolist() == [6.0, 6.0]


def test_function_transforms(device):
    gradient = torch.func.vmap(torch.func.grad(lambda x: x.square().sum()))
    assert gradient(torch.ones(2, 3, device=device)).tolist() == [[2.0] * 3] * 2


def test_compile_for_autograd(device):
    compiled = torch.compile(lambda x: nn.functional.silu(x) * 2, backend="aot_eager")
    x = torch.randn(4, device=device, requires_grad=True)
    compiled(x).sum().backward()
    assert x.grad.device == device
