"""Each switch of the simulated arithmetic does what it says and nothing when it is off."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

SMALLEST_NORMAL = 2.0**-126


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 64, 257, generator=generator)


def test_everything_is_off_by_default_but_the_vendors_defaults(npu):
    from simulator import switches

    on = {name for name in switches.NAMES if switches.get(name)}
    assert on == {"hf32_conv", "gelu_tanh"}


def test_reorder_changes_the_order_of_summation_only(device, arithmetic, factors):
    left, right = factors[0], factors[1].T.contiguous()
    plain = left.to(device) @ right.to(device)
    with arithmetic(reorder=True):
        reordered = left.to(device) @ right.to(device)
        total = factors.to(device).sum()
    assert not torch.equal(plain, reordered)
    torch.testing.assert_close(plain, reordered, rtol=0, atol=1e-4)
    torch.testing.assert_close(total.cpu(), factors.sum())


def test_saturate_writes_the_largest_number(device, arithmetic):
    large = torch.tensor([12.0, 1.0], dtype=torch.float16, device=device)
    with arithmetic(saturate=True):
        assert large.exp()[0].item() == 65504.0
        assert (-large).sqrt().tolist() == [0.0, 0.0]
    assert large.exp()[0].item() == float("inf")


def test_flush_writes_zero_for_subnormals(device, arithmetic):
    small = torch.tensor([SMALLEST_NORMAL, SMALLEST_NORMAL / 2], device=device)
    with arithmetic(flush_subnormal=True):
        assert (small * 1).tolist() == [SMALLEST_NORMAL, 0.0]
    assert (small * 1).tolist() == [SMALLEST_NORMAL, SMALLEST_NORMAL / 2]


def test_unsupported_operators_raise(device, arithmetic):
    values = torch.ones(3, device=device)
    with arithmetic(unsupported=("aten::histc",)), pytest.raises(NotImplementedError, match="aten::histc"):
        torch.histc(values)
    assert torch.histc(values).sum().item() == 3.0


def test_switches_are_restored_after_an_exception(device, arithmetic):
    from simulator import switches

    with pytest.raises(NotImplementedError), arithmetic(unsupported=("aten::exp",), saturate=True):
        torch.ones(1, device=device).exp()
    assert not switches.get("saturate")
    torch.ones(1, device=device).exp()


def test_an_unknown_switch_is_named(arithmetic):
    with pytest.raises(ValueError, match="unknown switch 'turbo'"), arithmetic(turbo=True):
        pass


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_takes_the_tanh_form_as_a_910b_does(device, arithmetic, approximate):
    x = torch.linspace(-4, 4, 101)
    on_device = gelu(x.to(device), approximate=approximate).cpu()
    assert torch.equal(on_device, gelu(x, approximate="tanh"))
    with arithmetic(gelu_tanh=False):
        assert torch.equal(gelu(x.to(device), approximate=approximate).cpu(), gelu(x, approximate=approximate))


def test_gelus_gradient_takes_the_tanh_form_too(device):
    x = torch.linspace(-4, 4, 101)
    grads = []
    for leaf, form in ((x.to(device).requires_grad_(), "none"), (x.clone().requires_grad_(), "tanh")):
        gelu(leaf, approximate=form).sum().backward()
        grads.append(leaf.grad.cpu())
    assert torch.equal(*grads)


def test_the_vendors_compatible_implementation_restores_exact_gelu(device):
    x = torch.linspace(-4, 4, 101)
    torch.npu.use_compatible_impl(True)
    try:
        assert torch.equal(gelu(x.to(device)).cpu(), gelu(x))
    finally:
        torch.npu.use_compatible_impl(False)
    assert not torch.equal(gelu(x.to(device)).cpu(), gelu(x))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3,), (3,)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((2, 3), (3, 4)),
        ((5, 2, 3), (3, 4)),
        ((5, 2, 3), (3,)),
        ((3,), (5, 3, 4)),
        ((2, 3), (5, 3, 4)),
        ((5, 2, 3), (5, 3, 4)),
        ((6, 1, 2, 3), (5, 3, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("reorder", [False, True])
def test_matmuls_gradient_in_every_shape(device, arithmetic, left, right, reorder):
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(shape, generator=generator) for shape in (left, right)]
    grads = []
    for place in (device, "cpu"):
        leaves = [factor.to(place).requires_grad_() for factor in factors]
        with arithmetic(reorder=reorder):
            product = torch.matmul(*leaves)
            product.backward(torch.ones_like(product))
        grads.append([leaf.grad.cpu() for leaf in leaves])
    torch.testing.assert_close(*grads)
