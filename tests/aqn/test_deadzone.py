"""The dead zone acts alike in diagnosis, rollout and training; noise before it revives, noise after it never does."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import aqn
from aqn import DeadzoneInjector, DeadzoneMatMul
from aqn.deadzone import survival_probability
from aqn.noise import Stream
from hal.errors import HookError, ModelError, UsageError
from hal.unit_mask import unit_mask
from tests.conftest import random_model


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- the tensor -------------------------------------------------------------------------------------


def test_values_below_the_threshold_of_the_maximum_die_and_others_stay():
    x = torch.tensor([[10.0, -0.9, 1.0, -1.1, 0.0]])
    assert DeadzoneInjector(0, 0.1)(x).tolist() == [[10.0, 0.0, 1.0, pytest.approx(-1.1), 0.0]]


def test_the_scope_decides_whether_a_neighbour_in_the_batch_can_kill():
    x = torch.tensor([[1.0, 0.5], [100.0, 50.0]])
    assert DeadzoneInjector(0, 0.1)(x)[0].tolist() == [0.0, 0.0]
    assert torch.equal(DeadzoneInjector(0, 0.1, scope="token")(x), x)


@given(sparsity=st.sampled_from([1.0, 0.5, 0.1]), seed=st.integers(0, 5))
def test_only_the_masked_units_are_touched_and_always_the_same(sparsity, seed):
    injector = DeadzoneInjector(0, 0.5, sparsity, seed=seed)
    mask = unit_mask(64, sparsity, seed=seed)
    for batch in range(2):
        x = values(3, 64, seed=batch)
        touched = (injector(x) != x).any(0)
        assert not touched[~mask].any()
        assert touched[mask].any()


# -- survival ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.99])
def test_before_revives_at_the_closed_form_rate(ratio, sigma):
    """The one large value, in a unit of its own that noise spares by the mask, fixes the threshold."""
    count = 200_000
    injector = DeadzoneInjector(0, 0.1, sigma=sigma)
    x = torch.full((count, 2), 0.1 * ratio)
    x[:, 0] = 0.0
    x[0, 0] = 1.0
    moved = _moved_maximum(injector, x)
    expected = float(survival_probability(ratio / moved, sigma))
    injector(x)
    assert injector.would_be_dead == count
    margin = 5 * math.sqrt(max(expected * (1 - expected), 1e-6) / count)
    assert abs(injector.survival_rate - expected) < margin


def _moved_maximum(injector, x):
    """Noise moves the maximum too, and with it the threshold: by how much, in this draw."""
    from aqn.noise import forward_noise
    from hal.noise import stream_key

    noisy = forward_noise(x, injector.sigma, Stream(0, stream_key("aqn.deadzone", 0, 0), "exact"), None)
    return float(noisy.abs().max())


@given(
    threshold=st.floats(0.01, 0.9),
    sigma=st.floats(0.01, 3.0),
    sparsity=st.sampled_from([1.0, 0.3]),
    scope=st.sampled_from(["tensor", "token"]),
    seed=st.integers(0, 100),
)
def test_after_never_revives(threshold, sigma, sparsity, scope, seed):
    x = values(4, 16, seed=seed)
    dead = DeadzoneInjector(0, threshold, sparsity, scope=scope)(x) == 0
    injector = DeadzoneInjector(0, threshold, sparsity, noise="after", scope=scope, sigma=sigma)
    assert (injector(x)[dead] == 0).all()
    assert injector.survival_rate == 0 if injector.would_be_dead else math.isnan(injector.survival_rate)


def test_the_closed_form_at_its_ends():
    assert survival_probability(0.5, 0.0) == 0
    assert survival_probability(1.0, 1e-9) == pytest.approx(0.5)
    assert survival_probability(1e-3, 0.05) < 1e-12
    many = survival_probability(torch.linspace(0.1, 1, 10), 0.3)
    assert (many.diff() >= 0).all()


# -- the model --------------------------------------------------------------------------------------


def test_it_acts_on_one_layer_and_leaves_nothing_behind(ids):
    model = random_model("qwen2")
    clean = model(ids).logits
    injector = DeadzoneInjector(2, 0.1)
    with injector.attach(model), torch.no_grad():
        assert not torch.equal(model(ids).logits, clean)
    assert injector.calls == 1
    assert injector.would_be_dead > 0
    assert torch.equal(model(ids).logits, clean)


def test_a_layer_that_returns_hidden_and_residual_is_their_sum():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, positions, hidden, residual):
            return self.proj(hidden), residual

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

    torch.manual_seed(0)
    net, hidden, residual = Net(), values(5, 4), 3 * values(5, 4, seed=1)
    expected = DeadzoneInjector(1, 0.3)(net.layers[1].proj(hidden) + residual)
    with DeadzoneInjector(1, 0.3).attach(net):
        out, rest = net.layers[1](torch.arange(5), hidden, residual)
    assert torch.equal(out + rest, expected)


def test_gradients_stop_exactly_at_dead_values():
    x = values(4, 16).requires_grad_()
    for order in ("before", "after"):
        injector = DeadzoneInjector(0, 0.2, noise=order, sigma=0.3)
        out = injector(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert ((gradient == 0) == (out == 0)).all()
        assert 0 < (out == 0).sum() < out.numel()


def test_a_block_in_which_the_layer_never_ran_is_an_error():
    with pytest.raises(HookError, match="never acted"), DeadzoneInjector(1).attach(random_model("qwen2")):
        pass


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ModelError, match="layer 9"), DeadzoneInjector(9).attach(random_model("qwen2")):
        pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"sparsity": 0.0}, "sparsity"),
        ({"noise": "between"}, "noise"),
        ({"scope": "row"}, "scope"),
        ({"sigma": -1.0}, "sigma"),
    ],
)
def test_values_that_no_dead_zone_has_are_named(options, words):
    with pytest.raises(UsageError, match=words):
        DeadzoneInjector(0, **options)


# -- the product ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [((3, 5), (5, 4)), ((2, 3, 5), (5, 4)), ((2, 3, 5), (2, 5, 4))], ids=str)
def test_the_product_and_its_gradients_against_float64(shapes):
    a, b = (values(*shape, seed=place).requires_grad_() for place, shape in enumerate(shapes))
    y = DeadzoneMatMul.apply(a, b, 0.2)
    incoming = values(*y.shape, seed=9)
    y.backward(incoming)
    product = a.detach().double() @ b.detach().double()
    keep = product.abs() >= 0.2 * product.abs().max()
    assert torch.allclose(y.double(), product * keep, rtol=1e-5, atol=1e-6)
    wide_a, wide_b = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
    ((wide_a @ wide_b) * keep).backward(incoming.double())
    assert torch.allclose(a.grad.double(), wide_a.grad, atol=1e-5)
    assert torch.allclose(b.grad.double(), wide_b.grad, atol=1e-5)
    assert 0 < (~keep).sum() < keep.numel()


def test_the_gradient_follows_the_final_output_and_not_the_product_alone():
    a, b = values(16, 6).requires_grad_(), values(6, 16, seed=1)
    stream = Stream(1, 2, "exact")
    with_noise = DeadzoneMatMul.apply(a, b, 0.2, "tensor", 0.5, stream)
    without = DeadzoneMatMul.apply(a, b, 0.2)
    moved = (with_noise != 0) & (without == 0)
    assert moved.any()
    (gradient,) = torch.autograd.grad(with_noise[moved].sum(), a)
    assert torch.allclose(gradient, moved.float() @ b.mT, atol=1e-6)


def test_noise_without_a_stream_is_refused():
    with pytest.raises(UsageError, match="Stream"):
        DeadzoneMatMul.apply(torch.ones(2, 2), torch.ones(2, 2), 0.1, "tensor", 0.1)


def test_the_configured_dead_zone_with_layer_noise_reports_what_survived(ids, configure):
    zone = {"layer": 1, "threshold": 0.05, "scope": "token"}
    model = random_model("qwen2")
    rates = {}
    for order in ("before", "after"):
        config = configure({**zone, "noise": order}, kind="layer", sigma=0.3, target_layers=[1])
        with aqn.inject(model, config) as injection, torch.no_grad():
            model(ids)
        rates[order] = injection.deadzone.survival_rate
    assert rates["before"] > 0
    assert rates["after"] == 0
