"""Noise is where it was asked for, nowhere else, counted, reproducible and fully removed."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import aqn
from aqn import AqnConfig, Hit
from aqn.config import MODES
from hal.errors import HookError, UsageError
from hal.hooks import Hooks
from tests.conftest import CARRYING, FAMILIES, random_model

LINEARS = 7  # of a Qwen2 layer


def run(model, config, ids, **options):
    with aqn.inject(model, config, **options) as injection, torch.no_grad():
        result = model(ids)
    return result.logits, injection


@pytest.fixture
def model():
    return random_model("qwen2")


# -- where ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", list(MODES))
def test_every_family_is_hit_in_every_layer_and_restored(family, mode, ids, configure):
    model = random_model(family, layers=3)
    clean = model(ids)[0]
    with aqn.inject(model, configure(mode=mode, sigma=0.1)) as injection, torch.no_grad():
        assert not torch.equal(model(ids)[0], clean)
    assert {hit.layer for hit in injection.counts} == {0, 1, 2}
    assert {hit.operator for hit in injection.counts} <= set(MODES[mode])
    assert torch.equal(model(ids)[0], clean)


def test_counts_say_phase_layer_and_operator(model, ids, configure):
    _, injection = run(model, configure(mode="all_ops", sigma=0.1, target_layers=[1, 3]), ids)
    assert injection.counts == {
        Hit("validation", layer, operator): count
        for layer in (1, 3)
        for operator, count in (("linear", LINEARS), ("rms_norm", 2), ("silu", 1))
    }


def test_products_and_softmax_of_eager_attention_are_hit(ids, configure):
    model = random_model("qwen2")
    model.set_attn_implementation("eager")
    _, injection = run(model, configure(mode="all_ops", sigma=0.1), ids)
    assert injection.counts[Hit("validation", 0, "matmul")] == 2
    assert injection.counts[Hit("validation", 0, "softmax")] == 1


def test_layers_before_the_target_are_untouched(model, ids, configure):
    seen = {}
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _m, _a, out, index=index: seen.setdefault(index, []).append(out))
    model(ids)
    run(model, configure(sigma=0.1, target_layers=[2]), ids)
    same = {index: torch.equal(*outputs) for index, outputs in seen.items()}
    assert same == {0: True, 1: True, 2: False, 3: False}


def test_operators_can_be_chosen(model, ids, configure):
    _, injection = run(model, configure(operators=["silu"], sigma=0.1), ids)
    assert {hit.operator for hit in injection.counts} == {"silu"}


def test_noise_of_the_layers_output(model, ids, configure):
    _, injection = run(model, configure(kind="layer", sigma=0.1, target_layers=[1]), ids)
    assert injection.counts == {Hit("validation", 1, "output"): 1}


# -- when -------------------------------------------------------------------------------------------


def test_validation_is_free_of_noise_unless_asked(model, ids):
    config = AqnConfig.parse({"aqn": {"sigma": 0.1}})
    clean = model(ids).logits
    with aqn.inject(model, config) as injection:
        assert torch.equal(model(ids).logits, clean)
        model.train()
        assert not torch.equal(model(ids).logits, clean)
        assert {hit.phase for hit in injection.counts} == {"actor_forward"}
        model.eval()
        with injection.during("rollout"):
            assert not torch.equal(model(ids).logits, clean)
        assert torch.equal(model(ids).logits, clean)


def test_rollout_and_actor_meet_the_same_noise(model, ids):
    """The probability ratio of a policy gradient then compares policies, not two draws."""
    config = AqnConfig.parse({"aqn": {"sigma": 0.1}})
    with aqn.inject(model, config) as injection, torch.no_grad():
        with injection.during("rollout"):
            rollout = model(ids).logits
        with injection.during("actor_forward"):
            assert torch.equal(model(ids).logits, rollout)


def test_generation_with_a_cache_meets_the_noise_of_the_whole_sequence(model, ids, configure):
    with aqn.inject(model, configure(mode="all_ops", sigma=0.1)), torch.no_grad():
        whole = model(ids).logits
        head = model(ids[:, :7], use_cache=True)
        step = model(ids[:, 7:8], past_key_values=head.past_key_values).logits
    assert torch.allclose(step[:, 0], whole[:, 7], atol=1e-4)


def test_a_prompt_meets_the_same_noise_alone_padded_and_in_any_batch(model, ids, configure):
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids[1:, :8]], 1)
    mask = torch.tensor([[0] * 4 + [1] * 8])
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with aqn.inject(model, configure(mode="all_ops", sigma=0.1)), torch.no_grad():
        alone = model(ids[1:, :8]).logits[0]
        batched = model(ids[:, :8].flip(0)).logits[0]
        beside = model(
            torch.cat([ids[:1], padded]),
            attention_mask=torch.cat([torch.ones_like(mask), mask]),
            position_ids=torch.cat([torch.arange(12)[None], places]),
        ).logits[1, 4:]
    assert torch.allclose(batched, alone, atol=1e-4)
    assert torch.allclose(beside, alone, atol=1e-4)


def test_noise_follows_step_seed_and_layer_and_nothing_else(model, ids, configure):
    def at(step, seed=0):
        with aqn.inject(model, configure(sigma=0.1, seed=seed)) as injection, torch.no_grad():
            injection.step = step
            return model(ids).logits

    first = at(4)
    torch.manual_seed(1234)
    torch.rand(7)
    assert torch.equal(at(4), first)
    assert not torch.equal(at(5), first)
    assert not torch.equal(at(4, seed=1), first)


def test_sigma_follows_the_schedule_and_each_layers_own_strength(model, configure):
    config = configure(
        sigma=0.05,
        layer_specific=True,
        layer_sigmas={0: 0.1, 2: 0.025},
        schedule={"name": "linear", "end": 0.0},
    )
    with pytest.raises(HookError), aqn.inject(model, config, steps=11) as injection:  # noqa: PT012 -- nothing runs
        assert (injection.sigma, injection.sigmas) == (0.05, pytest.approx({0: 0.1, 2: 0.025}))
        injection.step = 5
        assert (injection.step, injection.sigma) == (5, pytest.approx(0.025))
        assert injection.sigmas == pytest.approx({0: 0.05, 2: 0.0125})


# -- backward ---------------------------------------------------------------------------------------


def gradients(model, ids, phases, **noise):
    model.train()
    model.zero_grad()
    with aqn.inject(model, AqnConfig.parse({"aqn": {"phases": phases, "sigma": 0.2, **noise}})) as injection:
        output = model(ids).logits
        output.square().mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}, output.detach(), injection


def test_forward_and_backward_carry_noise_independently(model, ids):
    clean = model(ids).logits
    forward, noisy, _ = gradients(model, ids, ["actor_forward"])
    backward, same, injection = gradients(model, ids, ["actor_backward"])
    assert not torch.equal(noisy, clean)
    assert torch.equal(same, clean)
    assert {hit.phase for hit in injection.counts} == {"actor_backward"}
    model.zero_grad()
    model(ids).logits.square().mean().backward()
    for grads in (forward, backward):
        assert not torch.equal(
            grads["model.layers.0.mlp.up_proj.weight"], model.model.layers[0].mlp.up_proj.weight.grad
        )
    # Behind the last product of the backward pass nothing is disturbed.
    assert torch.equal(backward["lm_head.weight"], model.lm_head.weight.grad)


def test_backward_noise_of_one_linear_against_its_definition(configure):
    """The gradients of both factors carry noise of their own; the bias, which is only a sum, carries none."""
    torch.manual_seed(0)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, hidden_states):
            return self.proj(hidden_states)

    net = nn.Sequential(Layer())
    x = torch.randn(2, 3, 4, requires_grad=True)
    net(x).square().sum().backward()
    clean = {"x": x.grad.clone(), "weight": net[0].proj.weight.grad.clone(), "bias": net[0].proj.bias.grad.clone()}
    x.grad = None
    net.zero_grad()
    config = AqnConfig.parse({"aqn": {"phases": ["actor_backward"], "sigma": 0.1}})
    with aqn.inject(net, config):
        net(x).square().sum().backward()
    for name, now in (("x", x.grad), ("weight", net[0].proj.weight.grad)):
        relative = ((now - clean[name]) / clean[name].abs() / 0.1).flatten()
        assert relative.abs().max() < 6.34
        assert relative.std() > 0.3
    assert torch.equal(net[0].proj.bias.grad, clean["bias"])


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_bit(model, ids, reentrant):
    phases = ["actor_forward", "actor_backward"]
    expected, _, _ = gradients(model, ids, phases, mode="all_ops")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found, _, _ = gradients(model, ids, phases, mode="all_ops")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_works_under_autocast(model, ids):
    expected, _, counted = gradients(model, ids, ["actor_forward", "actor_backward"])
    with torch.autocast("cpu", torch.bfloat16):
        found, output, injection = gradients(model, ids, ["actor_forward", "actor_backward"])
    assert output.dtype == torch.bfloat16
    assert injection.counts == counted.counts
    for name, gradient in expected.items():
        assert torch.linalg.vector_norm(found[name] - gradient) < 0.15 * torch.linalg.vector_norm(gradient)


# -- compiled models --------------------------------------------------------------------------------


def test_a_model_compiled_inside_the_block_runs_eagerly_with_noise(model, ids, configure):
    with aqn.inject(model, configure(sigma=0.1)) as injection, torch.no_grad():
        eager = model(ids).logits
        count = sum(injection.counts.values())
        assert torch.equal(torch.compile(model, backend="eager")(ids).logits, eager)
        assert sum(injection.counts.values()) == 2 * count


def test_a_compiled_model_is_told_to_run_eagerly(model, ids, configure):
    compiled = torch.compile(model, backend="eager")
    expected, _ = run(model, configure(sigma=0.1), ids)
    with pytest.warns(UserWarning, match="runs eagerly"):
        found, _ = run(compiled, configure(sigma=0.1), ids)
    assert torch.equal(found, expected)


# -- nothing left, nothing missed -------------------------------------------------------------------


def assert_clean(model, ids, expected):
    assert torch.equal(model(ids).logits, expected)
    assert torch._C._len_torch_function_stack() == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_outputs_and_weights_come_back_after_an_exception_in_the_middle_of_a_step(model, ids, configure):
    expected = model(ids).logits
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def stop(*_):
        raise RuntimeError("as asked")

    handle = model.model.layers[2].mlp.register_forward_pre_hook(stop)
    config = configure({"layer": 1, "threshold": 0.1}, mode="all_ops", sigma=0.1)
    with pytest.raises(RuntimeError, match="as asked"), aqn.inject(model, config):
        model(ids)
    handle.remove()
    assert_clean(model, ids, expected)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())


def test_nothing_is_left_when_attaching_fails(model, ids, configure, monkeypatch):
    expected = model(ids).logits
    transform = Hooks.transform

    def fails_at_the_last(hooks, site, function):
        transform(hooks, site, function)
        if site.endswith("2"):
            raise ZeroDivisionError

    monkeypatch.setattr(Hooks, "transform", fails_at_the_last)
    with pytest.raises(ZeroDivisionError), aqn.inject(model, configure(kind="layer", sigma=0.1)):
        pass
    assert_clean(model, ids, expected)


def test_a_block_in_which_nothing_ran_is_an_error(model, configure):
    with pytest.raises(HookError, match="hit nothing"), aqn.inject(model, configure(sigma=0.1)):
        pass


def test_an_operator_the_model_does_not_have_is_an_error(model, ids, configure):
    with pytest.raises(HookError, match="hit nothing"):
        run(model, configure(operators=["layer_norm"], sigma=0.1), ids)
    with pytest.raises(HookError, match="'gelu' was asked for by name and never ran"):
        run(model, configure(operators=["linear", "gelu"], sigma=0.1), ids)


def test_a_target_layer_that_does_not_run_is_an_error(model, ids, configure):
    model.config.num_hidden_layers = 3
    with pytest.raises(HookError, match="never hit layer 3"):
        run(model, configure(sigma=0.1), ids)


def test_phases_that_never_came_are_an_error(model, ids):
    config = AqnConfig.parse({"aqn": {"phases": ["rollout"], "sigma": 0.1}})
    with pytest.raises(HookError, match="in the phases rollout"):
        run(model, config, ids)


def test_a_step_without_noise_is_no_error_but_counts_nothing(model, ids, configure):
    logits, injection = run(model, configure(sigma=0.0), ids)
    assert torch.equal(logits, model(ids).logits)
    assert not injection.counts


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"aqn": {"target_layers": [4]}}, "layers 0 to 3"),
        ({"aqn": {"layer_specific": True, "layer_sigmas": {7: 0.1}}}, "layer 7"),
        ({"deadzone": {"layer": 4}}, "layer 4"),
        ({"aqn": {"schedule": "cosine"}}, "pass steps="),
        ({"aqn": {"schedule": {"name": "cosine", "begin": 1}}}, "steps="),
    ],
)
def test_a_configuration_that_does_not_fit_the_model_is_refused_at_once(model, document, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        aqn.inject(model, AqnConfig.parse(document))


def test_an_unknown_phase_is_refused(model, ids, configure):
    with aqn.inject(model, configure(sigma=0.1)) as injection:
        model(ids)
        with pytest.raises(UsageError, match="unknown phase 'rolout'"):
            injection.phase = "rolout"


def test_a_model_elsewhere_than_the_backend_is_refused(configure):
    with pytest.raises(UsageError, match="meta"):
        aqn.inject(random_model("qwen2").to("meta"), configure(sigma=0.1), "cpu-reference")


@pytest.mark.parametrize("family", CARRYING)
def test_two_injections_compose(family, ids, configure):
    model = random_model(family, layers=3)
    with (
        aqn.inject(model, configure(sigma=0.1, target_layers=[0])) as outer,
        aqn.inject(model, configure({"layer": 1, "threshold": 0.1})) as inner,
        torch.no_grad(),
    ):
        model(ids)
    assert {hit.layer for hit in outer.counts} == {0}
    assert inner.deadzone.calls == 1
