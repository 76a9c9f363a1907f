"""A detour computes one part of a model elsewhere and leaves no trace."""

import pytest
import torch
from torch import nn

from hal.calls import capture_call
from hal.checkpoint import CheckpointWeights
from hal.detour import detour, on_host
from hal.errors import HookError, ModelError
from hal.hooks import Hooks
from hal.operators import OPERATORS
from hal.structure import find_layer_stack
from tests.conftest import FAMILIES, random_model

IDS = torch.arange(24).reshape(2, 12) * 7 % 300


def run(model):
    with torch.no_grad():
        output = model(IDS, use_cache=False)
    return output[0].clone()


def state(model):
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return [(name, id(value)) for name, value in (*model.named_parameters(), *model.named_buffers())], hooks


def input_and_output(model, site):
    """What the module at `site` is given (its captured call) and the hidden states it returns."""
    seen = []
    module = model.get_submodule(site)
    before = module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(capture_call(module, args, kwargs)), with_kwargs=True
    )
    with Hooks(model) as hooks:
        hooks.observe(site, lambda x: seen.append(x.clone()), role="submodule")
        run(model)
    before.remove()
    return seen


@pytest.fixture
def model(make_model):
    return make_model("qwen2", dtype=torch.bfloat16)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_computes_in_float32_and_returns_what_the_model_expects(family):
    model = random_model(family, dtype=torch.bfloat16)
    site = find_layer_stack(model).site(2)
    call, plain = input_and_output(model, site)
    before, signature = run(model), state(model)
    with detour(model, site) as taken, torch.no_grad():
        result = model.get_submodule(site)
        wide = call.replay(call.stream.float())
        narrow = call.replay(call.stream)
        changed = run(model)
    tensors = [output if isinstance(output, torch.Tensor) else output[0] for output in (wide, narrow)]
    assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.bfloat16]
    assert torch.equal(tensors[0].bfloat16(), tensors[1])
    assert not torch.equal(tensors[1], plain)
    torch.testing.assert_close(tensors[1].float(), plain.float(), rtol=0.1, atol=0.1 * float(plain.float().std()))
    assert taken.calls == 3
    assert not torch.equal(changed, before)
    assert torch.equal(run(model), before)
    assert state(model) == signature
    assert next(result.parameters()).dtype == torch.bfloat16


def test_a_linear_module_gives_the_float32_product_rounded_once(model):
    site = "model.layers.1.mlp.down_proj"
    call, _ = input_and_output(model, site)
    weight = model.get_submodule(site).weight
    expected = (call.stream.float() @ weight.float().T).bfloat16()
    with detour(model, site), torch.no_grad():
        assert torch.equal(model.get_submodule(site)(call.stream), expected)


@pytest.mark.parametrize("host", [False, True])
def test_weights_come_from_the_source_where_it_has_them(checkpoint_of, host):
    model, directory = checkpoint_of(torch.float32)
    model.bfloat16()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.add_(1.0)  # device memory is damaged
    stored = CheckpointWeights(directory)
    with detour(model, "model.layers.1", weights=stored, host=host):
        held = model.model.layers[1].mlp.down_proj.weight
        assert torch.equal(held, stored.tensor("model.layers.1.mlp.down_proj.weight"))
        assert held.dtype == torch.float32
    assert model.model.layers[1].mlp.down_proj.weight.dtype == torch.bfloat16


@pytest.fixture
def checkpoint_of(tmp_path):
    def make(dtype):
        model = random_model("qwen2", dtype=dtype)
        model.save_pretrained(tmp_path)
        return model, tmp_path

    return make


@pytest.mark.parametrize("early", [True, False], ids=["hooked before", "hooked inside"])
@pytest.mark.parametrize("site", ["model.layers.1", "model.layers.1.mlp.down_proj"])
def test_hooks_see_the_wide_computation_whenever_they_were_attached(model, early, site):
    seen = []
    with Hooks(model) as hooks:
        if early:
            hooks.observe(site, lambda x: seen.append(x.dtype))
        with detour(model, "model.layers.1"):
            if not early:
                hooks.observe(site, lambda x: seen.append(x.dtype))
            run(model)
    assert seen == [torch.float32]


def test_a_hook_may_run_the_module_again_and_the_outer_call_still_comes_home(model):
    returned = []

    def again(module, args, kwargs, _output):
        if not returned:
            returned.append(None)
            returned[0] = module(*args, **kwargs)

    following = []
    site = "model.layers.1"
    with detour(model, site) as taken, Hooks(model) as hooks:
        hooks.observe_calls(site, again)
        hooks.observe("model.layers.2", lambda x: following.append(x.dtype))
        run(model)
    assert taken.calls == 2
    assert returned[0].dtype == torch.float32
    assert following == [torch.bfloat16]


@pytest.mark.parametrize("operator", ["linear", "silu"])
def test_an_operator_alone_takes_the_detour(model, operator):
    seen = []
    with Hooks(model) as hooks:
        hooks.transform_operator("model.layers.1", operator, lambda x: seen.append(x.dtype) or x)
        before = run(model)
        plain = len(seen)
        with detour(model, "model.layers.1.mlp", operator) as taken:
            run(model)
        assert torch.equal(run(model), before)
    expected = {"linear": 3, "silu": 1}[operator]
    assert taken.calls == expected
    assert seen[plain : 2 * plain].count(torch.float32) == expected
    assert set(seen[:plain] + seen[2 * plain :]) == {torch.bfloat16}
    assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16


def test_an_operator_takes_the_detour_where_a_part_of_its_site_runs_alone(model):
    x = torch.linspace(-4, 4, 64, dtype=torch.bfloat16).reshape(4, 16)
    layers = model.model.layers
    with detour(model, "model.layers.1.mlp", "silu") as taken:
        layers[1].mlp.act_fn(x)
        layers[2].mlp.act_fn(x)
    assert taken.calls == 1


def test_code_knows_whether_it_runs_on_the_host(model):
    places = []
    sites = ("model.layers.1", "model.layers.1.mlp.act_fn", "model.layers.2")
    with Hooks(model) as hooks:
        for site in sites:
            hooks.observe(site, lambda _, site=site: places.append((site, on_host())))
        with detour(model, "model.layers.1", host=True):
            run(model)
        with detour(model, "model.layers.1.mlp", "silu", host=True):
            run(model)
        with detour(model, "model.layers.1"):
            run(model)
    inside, operator, wide = ([found for _, found in places[at : at + 3]] for at in (0, 3, 6))
    assert inside == [True, True, False]
    assert operator == [False, False, False]  # the operator is on the host, the module around it is not
    assert wide == [False, False, False]
    assert not on_host()


def test_an_operator_on_the_host_is_marked_while_it_runs(model):
    found = []
    with Hooks(model) as hooks:
        hooks.transform_operator("model.layers.1", "silu", lambda x: found.append(on_host()) or x)
        with detour(model, "model.layers.1", "silu", host=True):
            run(model)
    assert found == [True]


@pytest.mark.parametrize("where", ["before", "inside", "hook"])
@pytest.mark.parametrize("host", [False, True])
def test_after_an_exception_the_model_is_as_before(model, where, host):
    signature, before = state(model), run(model)

    def fail(*_):
        raise ArithmeticError("device lost")

    layer = model.model.layers[1]
    failing = {
        "before": layer.register_forward_pre_hook,
        "inside": layer.mlp.register_forward_hook,
        "hook": layer.register_forward_hook,
    }[where](fail)
    with pytest.raises(ArithmeticError), detour(model, "model.layers.1", host=host):
        run(model)
    failing.remove()
    assert not on_host()
    assert state(model) == signature
    assert torch.equal(run(model), before)


def test_text_is_generated_through_a_detour(model):
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    with detour(model, "model.layers.1", host=True) as taken:
        cached = model.generate(IDS, attention_mask=mask, **options)
        assert torch.equal(cached, model.generate(IDS, attention_mask=mask, use_cache=False, **options))
    assert taken.calls >= 12


def test_a_module_in_float64_is_as_exact_as_asked():
    model = random_model("llama")
    call, _ = input_and_output(model, "model.layers.0.mlp")
    exact = random_model("llama").double().model.layers[0].mlp(call.stream.double())
    with detour(model, "model.layers.0.mlp", dtype=torch.float64), torch.no_grad():
        assert torch.equal(model.model.layers[0].mlp(call.stream), exact.float())


def test_what_does_not_exist_is_named(model):
    with pytest.raises(HookError, match=r"no module 'model\.layers\.9'"), detour(model, "model.layers.9"):
        pass
    with pytest.raises(HookError, match="operator 'conv' cannot"), detour(model, "model.layers.0", "conv"):
        pass
    assert "conv" not in OPERATORS


def test_quantised_weights_have_no_other_precision(model):
    signature = state(model)
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    changed = state(model)
    refused = pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight' is quantised \(int8\)")
    with refused, detour(model, "model.layers.1"):
        pass
    assert state(model) == changed != signature
