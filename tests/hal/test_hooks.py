"""Hooks act where they were put, in their order, are counted, and never outlive their block."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from hal import HookError
from hal.hooks import Hooks
from tests.conftest import CARRYING, random_model

IDS = torch.arange(24).reshape(2, 12) % 300


class Block(nn.Module):
    """A layer with one linear submodule; `form` shapes what it returns."""

    def __init__(self, form=lambda hidden, x: hidden) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.form = form
        self.error: Exception | None = None

    def forward(self, x):
        hidden = self.proj(x)
        if self.error is not None:
            raise self.error
        return self.form(hidden, x)


class Net(nn.Module):
    def __init__(self, form=lambda hidden, x: hidden) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(form) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            output = layer(x)
            x = output if isinstance(output, torch.Tensor) else output[0]
        return x


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    return Net()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.linspace(-1, 1, 24).reshape(2, 3, 4)


def hook_tables(model: nn.Module) -> list[int]:
    return [
        len(table)
        for module in model.modules()
        for name, table in vars(module).items()
        if name.startswith(("_forward_hooks", "_forward_pre_hooks"))
    ]


def assert_untouched(model: nn.Module, x: torch.Tensor, expected: torch.Tensor) -> None:
    assert sum(hook_tables(model)) == 0
    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(model(x), expected)


# -- restoring --------------------------------------------------------------------------------------


def attach_all(hooks: Hooks) -> None:
    hooks.observe("layers.0", lambda h: None)
    hooks.observe_calls("layers.0", lambda *call: None)
    hooks.transform("layers.1", lambda h: h + 1)
    hooks.transform_operator("layers.2", "linear", lambda h: h * 2)


def test_model_is_restored_after_the_block(net, x):
    expected = net(x)
    with Hooks(net) as hooks:
        attach_all(hooks)
        assert not torch.equal(net(x), expected)
    assert_untouched(net, x, expected)


def test_model_is_restored_after_an_exception_in_the_block(net, x):
    expected = net(x)
    with pytest.raises(KeyError), Hooks(net) as hooks:  # noqa: PT012
        attach_all(hooks)
        raise KeyError
    assert_untouched(net, x, expected)


def test_model_is_restored_after_an_exception_in_a_callback(net, x):
    expected = net(x)
    with pytest.raises(ZeroDivisionError), Hooks(net) as hooks:  # noqa: PT012
        attach_all(hooks)
        hooks.transform("layers.2", lambda h: 1 / 0)
        net(x)
    assert_untouched(net, x, expected)


def test_operator_hook_ends_when_the_module_raises(net, x):
    expected = net(x)
    with Hooks(net) as hooks:
        hooks.transform_operator("layers.1", "linear", lambda h: h * 2)
        net.layers[1].error = RuntimeError("device lost")
        with pytest.raises(RuntimeError, match="device lost"):
            net(x)
        net.layers[1].error = None
        assert torch._C._len_torch_function_stack() == 0
        assert torch.equal(functional.linear(x, torch.eye(4)), x)
        doubled = net.layers[2](2 * net.layers[1].proj(net.layers[0](x)))
        assert torch.allclose(net(x), doubled)
    assert_untouched(net, x, expected)


def test_operator_hook_survives_a_pre_hook_that_raises_before_it(net, x):
    expected = net(x)

    def refuse(_module, _args):
        raise RuntimeError("not now")

    handle = net.layers[1].register_forward_pre_hook(refuse)
    with Hooks(net) as hooks:
        hooks.transform_operator("layers.1", "linear", lambda h: h * 2)
        with pytest.raises(RuntimeError, match="not now"):
            net(x)
        handle.remove()
        assert not torch.equal(net(x), expected)
    assert_untouched(net, x, expected)


def test_hooks_of_others_stay(net, x):
    handle = net.layers[0].register_forward_hook(lambda module, args, output: output + 5)
    expected = net(x)
    with Hooks(net) as hooks:
        attach_all(hooks)
    assert torch.equal(net(x), expected)
    handle.remove()


def test_hooks_attached_before_the_block_are_removed_at_its_end(net, x):
    expected = net(x)
    hooks = Hooks(net)
    hooks.transform("layers.0", lambda h: h + 1)
    with hooks:
        assert not torch.equal(net(x), expected)
    assert_untouched(net, x, expected)


def test_attaching_after_the_block_is_refused_because_nothing_would_remove_it(net, x):
    expected = net(x)
    with Hooks(net) as hooks:
        pass
    with pytest.raises(HookError, match=r"'layers.0': this set of hooks has ended"):
        hooks.transform("layers.0", lambda h: h + 1)
    assert_untouched(net, x, expected)


# -- acting -----------------------------------------------------------------------------------------


def test_transforms_compose_in_the_order_of_attachment(net, x):
    plain = net.layers[0](x)
    with Hooks(net) as hooks:
        hooks.transform("layers.0", lambda h: h + 1)
        hooks.transform("layers.0", lambda h: h * 3)
        assert torch.equal(net.layers[0](x), (plain + 1) * 3)


def test_observer_sees_what_the_hooks_before_it_returned(net, x):
    plain = net.layers[0](x)
    seen = []
    with Hooks(net) as hooks:
        hooks.observe("layers.0", seen.append)
        hooks.transform("layers.0", lambda h: h + 1)
        hooks.observe("layers.0", seen.append)
        net.layers[0](x)
    assert torch.equal(seen[0], plain)
    assert torch.equal(seen[1], plain + 1)


def test_observer_changes_nothing(net, x):
    expected = net(x)
    with Hooks(net) as hooks:
        hooks.observe("layers.0", lambda h: h * 0)
        hooks.observe_calls("layers.0", lambda module, args, kwargs, output: output * 0)
        assert torch.equal(net(x), expected)


def test_sets_of_hooks_nest(net, x):
    plain = net.layers[0](x)
    with Hooks(net) as outer:
        outer.transform("layers.0", lambda h: h + 1)
        with Hooks(net) as inner:
            inner.transform("layers.0", lambda h: h * 3)
            assert torch.equal(net.layers[0](x), (plain + 1) * 3)
        assert torch.equal(net.layers[0](x), plain + 1)


def test_calls_are_observed_with_their_arguments(net, x):
    calls = []
    with Hooks(net) as hooks:
        hooks.observe_calls("layers.1", lambda *call: calls.append(call))
        net.layers[1](x=x)
    ((module, args, kwargs, output),) = calls
    assert module is net.layers[1]
    assert args == ()
    assert kwargs["x"] is x
    assert torch.equal(output, net.layers[1](x))


def test_every_hit_is_counted_by_site(net, x):
    with Hooks(net) as hooks:
        attach_all(hooks)
        net(x)
        net(x)
        assert dict(hooks.counts) == {"layers.0": 4, "layers.1": 2, "layers.2:linear": 2}
        assert hooks.counts["layers.2"] == 0


def test_root_module_can_be_hooked(net, x):
    expected = net(x)
    with Hooks(net) as hooks:
        hooks.transform("", lambda h: h + 1)
        assert torch.equal(net(x), expected + 1)


# -- what modules return ----------------------------------------------------------------------------


def test_pair_of_hidden_and_residual_is_seen_as_its_sum_and_replaced_whole(x):
    net = Net(form=lambda hidden, x: (hidden, x))
    seen = []
    with Hooks(net) as hooks:
        hooks.observe("layers.0", seen.append)
        hooks.transform("layers.0", lambda h: h * 3)
        hidden, residual = net.layers[0](x)
    expected = net.layers[0].proj(x) + x
    assert torch.equal(seen[0], expected)
    assert torch.equal(hidden, expected * 3)
    assert torch.equal(residual, torch.zeros_like(x))


def test_other_entries_of_a_tuple_are_passed_on(x):
    cache = object()
    net = Net(form=lambda hidden, x: (hidden, None, cache))
    with Hooks(net) as hooks:
        hooks.transform("layers.0", lambda h: h * 3)
        hidden, nothing, same = net.layers[0](x)
    assert torch.equal(hidden, net.layers[0].proj(x) * 3)
    assert nothing is None
    assert same is cache


def test_submodule_role_takes_the_first_entry_alone(x):
    net = Net(form=lambda hidden, x: (hidden, x))
    with Hooks(net) as hooks:
        hooks.transform("layers.0", lambda h: h * 3, role="submodule")
        hidden, residual = net.layers[0](x)
    assert torch.equal(hidden, net.layers[0].proj(x) * 3)
    assert residual is x


def test_output_that_no_rule_covers_is_refused(x):
    net = Net(form=lambda hidden, x: {"hidden": hidden})
    with Hooks(net) as hooks:
        hooks.observe("layers.0", lambda h: None)
        with pytest.raises(HookError, match="a module returned a dict"):
            net.layers[0](x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda h: h[:1], r"returned \(1, 3, 4\) float32 on cpu for \(2, 3, 4\) float32 on cpu"),
        (lambda h: h.double(), r"returned \(2, 3, 4\) float64"),
        (lambda h: h.to("meta"), r"on meta for"),
        (lambda h: None, r"returned NoneType: it must return a tensor"),
    ],
    ids=["shape", "dtype", "device", "nothing"],
)
@pytest.mark.parametrize("operator", [False, True])
def test_transform_that_changes_the_form_is_refused_by_site(net, x, function, message, operator):
    with Hooks(net) as hooks:
        if operator:
            hooks.transform_operator("layers.1", "linear", function)
        else:
            hooks.transform("layers.1", function)
        with pytest.raises(HookError, match=message) as caught:
            net(x)
    assert f"'layers.1{':linear' if operator else ''}'" in str(caught.value)
    assert torch._C._len_torch_function_stack() == 0


# -- unknown names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("layers.7", "no module 'layers.7'; below 'layers' there are: 0, 1, 2"),
        ("layers.1.projj", "no module 'layers.1.projj'; below 'layers.1' there are: proj"),
        ("model.layers.0", "no module 'model.layers.0'; below 'the root' there are: layers"),
        ("layers.1.proj.weight", "below 'layers.1.proj' there are: no modules"),
    ],
)
@pytest.mark.parametrize("attach", ["observe", "observe_calls", "transform", "operator"])
def test_unknown_site_names_what_there_is(net, site, message, attach):
    with Hooks(net) as hooks, pytest.raises(HookError) as caught:  # noqa: PT012
        if attach == "operator":
            hooks.transform_operator(site, "linear", lambda h: h)
        else:
            getattr(hooks, attach)(site, lambda *values: values[0])
    assert message in str(caught.value)


def test_long_lists_of_modules_are_shortened():
    net = nn.ModuleList(nn.Linear(1, 1) for _ in range(12))
    with Hooks(net) as hooks, pytest.raises(HookError, match=r"there are: 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.$"):
        hooks.observe("12", lambda h: None)


def test_unknown_operator_lists_those_that_can_be_hooked(net):
    with Hooks(net) as hooks, pytest.raises(HookError, match=r"'lineer' cannot be hooked; choose one of: attention,"):
        hooks.transform_operator("layers.0", "lineer", lambda h: h)


# -- operators --------------------------------------------------------------------------------------


def test_operator_is_transformed_inside_its_site_only(net, x):
    weights = [layer.proj for layer in net.layers]
    with Hooks(net) as hooks:
        hooks.transform_operator("layers.1", "linear", lambda h: h + 1)
        assert torch.equal(net(x), weights[2](weights[1](weights[0](x)) + 1))
        assert hooks.counts == {"layers.1:linear": 1}


def test_operator_is_transformed_where_a_part_of_its_site_runs_alone_if_asked(net, x):
    plain = [layer.proj(x) for layer in net.layers]
    whole = net.layers[1](x)
    with Hooks(net) as hooks:
        hooks.transform_operator("layers.1", "linear", lambda h: h + 1, parts_too=True)
        assert torch.equal(net.layers[1](x), whole + 1)
        assert torch.equal(net.layers[1].proj(x), plain[1] + 1)
        assert torch.equal(net.layers[2].proj(x), plain[2])


def test_part_that_lies_in_two_sites_is_transformed_inside_the_one_asked_for_only(net, x):
    net.layers[2].proj = net.layers[1].proj
    plain = [layer(x) for layer in net.layers]
    with Hooks(net) as hooks:
        hooks.transform_operator("layers.1", "linear", lambda h: h + 1, parts_too=True)
        assert not torch.equal(net.layers[1](x), plain[1])
        assert torch.equal(net.layers[2](x), plain[2])


def test_operator_transforms_on_one_site_compose_in_the_order_of_attachment(net, x):
    plain = net.layers[0](x)
    with Hooks(net) as hooks:
        hooks.transform_operator("layers.0", "linear", lambda h: h + 1)
        hooks.transform_operator("layers.0", "linear", lambda h: h * 3)
        assert torch.equal(net.layers[0](x), (plain + 1) * 3)


def test_operator_transforms_of_nested_sites_act_both(net, x):
    plain = net.layers[0](x)
    with Hooks(net) as hooks:
        hooks.transform_operator("layers.0", "linear", lambda h: h + 1)
        hooks.transform_operator("layers.0.proj", "linear", lambda h: h + 8)
        assert torch.allclose(net.layers[0](x), plain + 9)
        assert hooks.counts == {"layers.0:linear": 1, "layers.0.proj:linear": 1}


def test_operators_of_a_transform_are_not_the_modules_own(net, x):
    plain = net.layers[0](x)
    weight = torch.eye(4)
    with Hooks(net) as hooks:
        hooks.transform("layers.0", lambda h: functional.linear(h, weight))
        hooks.transform_operator("layers.0", "linear", lambda h: h + 1)
        assert torch.equal(net.layers[0](x), plain + 1)
        assert hooks.counts["layers.0:linear"] == 1


class Recursive(nn.Module):
    """Calls itself until its depth is used up."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.proj.weight)

    def forward(self, x, depth: int):
        x = self.proj(x)
        return self(x, depth - 1) if depth else x


def test_module_that_calls_itself_is_transformed_once_per_operator(x):
    module = Recursive()
    with Hooks(module) as hooks:
        hooks.transform_operator("", "linear", lambda h: h + 1)
        assert torch.allclose(module(x, 2), x + 3)
        assert hooks.counts == {":linear": 3}
        assert torch.allclose(module(x, 0), x + 1)
    assert torch._C._len_torch_function_stack() == 0


def test_recursive_module_that_raises_leaves_nothing_behind(x):
    module = Recursive()
    with Hooks(module) as hooks:
        hooks.transform_operator("", "linear", lambda h: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            module(x, 2)
        assert torch._C._len_torch_function_stack() == 0


# -- real models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CARRYING)
def test_layers_and_operators_of_each_family_can_be_hooked(family):
    model = random_model(family, layers=2)
    site = next(name for name, _ in model.named_modules() if name.endswith(".1"))
    with torch.no_grad():
        expected = model(IDS).logits
        for operator in ("", "linear"):
            with Hooks(model) as hooks:
                if operator:
                    hooks.transform_operator(site, operator, lambda h: h + 1)
                else:
                    hooks.transform(site, lambda h: h + torch.linspace(-1, 1, h.shape[-1]))
                changed = model(IDS).logits
                assert sum(hooks.counts.values()) >= 1
            assert not torch.equal(changed, expected)
            assert torch.equal(model(IDS).logits, expected)
