import contextlib

import pytest
import torch

from hal.errors import HookError, ModelError, UsageError
from hal.structure import find_layer_stack
from srdd.faults import Fault, parse_fault, simulate
from tests.conftest import CARRYING, FAMILIES

IDS = torch.arange(40).reshape(2, 20)


@torch.no_grad()
def run(model):
    return model(IDS)[0]


@torch.no_grad()
def layer_outputs(model):
    """What each layer returned in one forward pass."""
    outputs = []

    def keep(_module, _args, output):
        outputs.append((output if isinstance(output, torch.Tensor) else output[0]).clone())

    handles = [layer.register_forward_hook(keep) for layer in find_layer_stack(model).layers]
    model(IDS)
    for handle in handles:
        handle.remove()
    return outputs


def hook_count(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fault_acts_inside_the_block_and_is_gone_after_it(make_model, family):
    model = make_model(family)
    healthy = run(model)
    with simulate(model, [parse_fault("saturation@2")]) as [fault]:
        assert not torch.equal(run(model), healthy)
    assert fault.calls == 1
    assert fault.changed > 0
    assert torch.equal(run(model), healthy)
    assert hook_count(model) == 0


def test_a_fault_is_gone_after_an_exception(make_model):
    model = make_model("qwen2")
    healthy = run(model)
    faults = [parse_fault("bias@1"), parse_fault("noise@2:site=mlp,operator=linear")]
    with contextlib.suppress(KeyboardInterrupt), simulate(model, faults):
        run(model)
        raise KeyboardInterrupt
    assert torch.equal(run(model), healthy)
    assert hook_count(model) == 0


def test_an_exception_inside_the_faulty_layer_leaves_no_operator_fault_behind(make_model):
    model = make_model("qwen2")
    healthy = run(model)

    def fail(_module, _args):
        raise RuntimeError("out of memory")

    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"), simulate(model, [parse_fault("bias@1:operator=linear")]):
        run(model)
    handle.remove()
    assert torch.equal(run(model), healthy)


@pytest.mark.parametrize("family", CARRYING)
def test_the_layers_before_are_untouched_and_the_layers_output_is_the_corrupted_one(make_model, family):
    model = make_model(family)
    healthy = layer_outputs(model)
    with simulate(model, [Fault("saturation", 2, magnitude=0.4)]):
        faulty = layer_outputs(model)
    limit = 0.6 * healthy[2].abs().max()
    assert torch.equal(faulty[0], healthy[0])
    assert torch.equal(faulty[1], healthy[1])
    torch.testing.assert_close(faulty[2], healthy[2].clamp(-limit, limit))
    assert not torch.equal(faulty[3], healthy[3])


def test_a_submodule_can_be_the_site(make_model):
    model = make_model("llama")
    layer = model.model.layers[1]
    seen = []
    with simulate(model, [parse_fault("dead_zone@1:site=mlp.down_proj,magnitude=0.5")]) as [fault]:
        handle = layer.mlp.down_proj.register_forward_hook(lambda _m, _a, output: seen.append(output))
        run(model)
        handle.remove()
    assert fault.calls == 1
    assert int((seen[0] == 0).sum()) == fault.changed > 0


def test_a_module_outside_the_layers_can_be_the_site(make_model):
    model = make_model("llama")
    healthy = run(model)
    with simulate(model, [parse_fault("bias@lm_head:units=1")]) as [fault]:
        faulty = run(model)
    assert fault.calls == 1
    assert ((faulty != healthy).sum(dim=(0, 1)) > 0).sum() == 1
    norm = model.model.norm.weight
    before = norm.detach().clone()
    with simulate(model, [parse_fault("bit_flip@model.norm:parameter=weight,scope=elements,units=1,bits=20")]):
        assert (norm != before).sum() == 1
    assert torch.equal(norm, before)


def test_a_submodule_that_returns_a_tuple_can_be_the_site(make_model):
    model = make_model("llama")
    healthy = run(model)
    with simulate(model, [parse_fault("bias@1:site=self_attn")]) as [fault]:
        assert not torch.equal(run(model), healthy)
    assert fault.calls == 1


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("bias@1:operator=linear", 7),
        ("bias@1:operator=linear,site=mlp", 3),
        ("bias@1:operator=silu", 1),
        ("bias@1:operator=attention", 1),
    ],
)
def test_an_operator_inside_a_site_is_hit_as_often_as_it_runs(make_model, text, calls):
    model = make_model("qwen2")
    healthy = run(model)
    with simulate(model, [parse_fault(text)]) as [fault]:
        assert not torch.equal(run(model), healthy)
    assert fault.calls == calls
    assert torch.equal(run(model), healthy)


def test_one_unit_wide_masks_follow_the_width_of_each_operators_output(make_model):
    model = make_model("qwen2")
    with simulate(model, [parse_fault("bias@1:operator=linear,site=mlp,units=1")]) as [fault]:
        run(model)
    assert fault.changed == 3 * IDS.numel()  # gate_proj and up_proj (128 wide) and down_proj (64): one unit of each


def test_faults_on_one_layer_act_in_the_order_given(make_model):
    model = make_model("qwen2")
    plain = layer_outputs(model)[3]
    with simulate(model, [Fault("saturation", 3), Fault("bias", 3)]):
        both = layer_outputs(model)[3]
    limit = 0.7 * plain.abs().max()
    clamped = plain.clamp(-limit, limit)
    torch.testing.assert_close(both, clamped + 0.3 * clamped.std(correction=0))


def test_each_of_several_faults_counts_for_itself(make_model):
    model = make_model("qwen2")
    with simulate(model, [parse_fault("bias@0"), parse_fault("bias@3:sparsity=0.5"), parse_fault("noise@3")]) as active:
        run(model)
        run(model)
    assert [fault.calls for fault in active] == [2, 2, 2]
    assert [fault.changed for fault in active[:2]] == [2 * IDS.numel() * 64, IDS.numel() * 64]


def test_no_faults_change_nothing(make_model):
    model = make_model("qwen2")
    healthy = run(model)
    with simulate(model, []) as active:
        assert torch.equal(run(model), healthy)
    assert active == []


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("bias@4", UsageError, "'bias@4': the model has layers 0 to 3"),
        ("bias@1:site=mlp.downproj", HookError, "no module 'model.layers.1.mlp.downproj'.*down_proj"),
        ("bias@head", HookError, "no module 'head'"),
        (
            "bias@model.layers.1.mlp",
            UsageError,
            "'bias@model.layers.1.mlp' is inside the layers: write bias@LAYER:site=NAME",
        ),
        ("bias@1:operator=conv", HookError, "operator 'conv' cannot be hooked; choose one of: attention"),
    ],
)
def test_a_place_that_does_not_exist_is_named_and_no_other_fault_stays(make_model, text, error, message):
    model = make_model("qwen2")
    with pytest.raises(error, match=message), simulate(model, [parse_fault("bias@0"), parse_fault(text)]):
        pass
    assert hook_count(model) == 0


def test_an_empty_mask_is_an_error_not_a_healthy_run(make_model):
    model = make_model("qwen2")
    with (
        pytest.raises(UsageError, match="hits none of them"),
        simulate(model, [parse_fault("bias@0:sparsity=0.001")]),
    ):
        run(model)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="no repeated layers"), simulate(torch.nn.Linear(4, 4), [Fault("bias", 0)]):
        pass


def test_masks_are_the_same_on_every_run(make_model):
    model = make_model("qwen2")
    changed = []
    for seed in range(2):
        torch.manual_seed(seed)
        with simulate(model, [parse_fault("bias@2:sparsity=0.1,seed=9")]):
            changed.append(run(model))
    assert torch.equal(*changed)


def bits_of(model):
    return {name: value.detach().clone().view(torch.int32) for name, value in model.named_parameters()}


@pytest.mark.parametrize("text", ["bit_flip@1:units=1,scope=elements,bits=30", "bias@1", "stuck_at@1:sparsity=0.1"])
def test_a_fault_in_a_weight_is_there_for_the_block_and_its_bits_come_back(make_model, text):
    model = make_model("qwen2")
    before, healthy = bits_of(model), run(model)
    separator = "," if ":" in text else ":"
    fault = parse_fault(f"{text}{separator}site=mlp.down_proj,parameter=weight")
    with contextlib.suppress(KeyboardInterrupt), simulate(model, [fault]) as [active]:
        changed = {name for name, value in bits_of(model).items() if not torch.equal(value, before[name])}
        assert changed == {"model.layers.1.mlp.down_proj.weight"}
        assert active.changed == sum(int((bits_of(model)[name] != before[name]).sum()) for name in changed) > 0
        assert not torch.equal(run(model), healthy)
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in bits_of(model).items())


@pytest.mark.parametrize(
    ("site", "attribute", "held"),
    [("input_layernorm", "", "variance_epsilon"), ("self_attn", "", "scaling"), ("self_attn", "scaling", "scaling")],
)
def test_a_wrong_constant_is_put_right_afterwards(make_model, site, attribute, held):
    model = make_model("qwen2")
    module = model.model.layers[1].get_submodule(site)
    before = getattr(module, held)
    with simulate(model, [Fault("wrong_constant", 1, site=site, attribute=attribute, factor=10)]):
        assert getattr(module, held) == pytest.approx(10 * before)
    assert getattr(module, held) == before


@torch.no_grad()
def decode(model):
    """Logits of the last token with the others' keys and values cached."""
    first = model(IDS[:, :-1], use_cache=True)
    return model(IDS[:, -1:], past_key_values=first.past_key_values).logits


def test_a_fault_in_the_key_value_cache_acts_where_there_is_a_cache_and_only_there(make_model):
    model = make_model("qwen2")
    healthy, cached = run(model), decode(model)
    faults = [Fault("bias", 1, site="kv_cache"), Fault("scale", 1, site="kv_cache")]
    with simulate(model, faults) as active:
        without = model(IDS, use_cache=False)[0]
        assert [fault.calls for fault in active] == [0, 0]
        assert torch.equal(without, healthy)
        assert not torch.equal(decode(model), cached)
    assert [fault.calls for fault in active] == [4, 4]
    assert torch.equal(decode(model), cached)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bias@1:site=mlp.down_proj,parameter=weigth", "no floating-point parameter 'weigth'; it has: weight"),
        ("wrong_constant@1:site=mlp.down_proj", "not an epsilon or a scale"),
        ("wrong_constant@1:site=self_attn,attribute=nosuch", "not a constant 'nosuch'; its numbers: .*scaling"),
    ],
)
def test_a_parameter_or_constant_that_is_not_there_is_named(make_model, text, message):
    with pytest.raises(UsageError, match=message), simulate(make_model("qwen2"), [parse_fault(text)]):
        pass
