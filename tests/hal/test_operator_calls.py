"""Every call of a chosen operator is seen with its place, whichever way the model spells it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from hal import HookError
from hal.hooks import Hooks
from hal.module_operators import bare_name, module_operator
from tests.conftest import CARRYING, random_model

IDS = torch.arange(24).reshape(2, 12) % 300


class Recorder:
    """Notes every call, and scales what passes."""

    def __init__(self, arguments=1.0, results=1.0) -> None:
        self.arguments, self.results = arguments, results
        self.seen: list[tuple[str, str, int]] = []
        self.roles: list[tuple[str, str, tuple[int, ...]]] = []

    def argument(self, call, tensor, role):
        self.roles.append((call.operator, role, tuple(tensor.shape)))
        return tensor * self.arguments if self.arguments != 1 else tensor

    def result(self, call, tensor):
        self.seen.append((call.operator, call.site, call.occurrence))
        return tensor * self.results if self.results != 1 else tensor


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)

    def forward(self, x):
        scores = torch.matmul(x, x.mT)
        return self.proj(torch.matmul(functional.softmax(scores, -1), x))


class TinyRMSNorm(nn.Module):
    """Composed from primitives, with a product inside that is the norm's own business."""

    def forward(self, x):
        return x * torch.rsqrt(torch.matmul(x, x.mT).diagonal(dim1=-2, dim2=-1)[..., None])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = TinyRMSNorm()
        self.attn = Attention()
        self.error = False

    def forward(self, x):
        x = self.attn(self.norm(x))
        if self.error:
            raise RuntimeError("as asked")
        return x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.linspace(-1, 1, 24).reshape(2, 3, 4)


def recorded(net, x, operators, handler=None, site="layers.0"):
    handler = handler or Recorder()
    with Hooks(net) as hooks:
        hooks.handle_operators(site, operators, handler)
        result = net(x)
    return handler, result


def test_calls_carry_the_module_that_makes_them_and_their_number_in_it(net, x):
    handler, _ = recorded(net, x, ["matmul", "linear", "softmax", "rms_norm"])
    assert handler.seen == [
        ("rms_norm", "norm", 0),
        ("matmul", "attn", 0),
        ("softmax", "attn", 0),
        ("matmul", "attn", 1),
        ("linear", "attn.proj", 0),
    ]


def test_a_second_pass_counts_from_zero_again(net, x):
    handler = Recorder()
    with Hooks(net) as hooks:
        hooks.handle_operators("layers.0", ["matmul"], handler)
        net(x)
        first = list(handler.seen)
        net(x)
    assert handler.seen == first * 2


def test_factors_are_named_by_their_role_and_a_bias_is_none(net, x):
    handler, _ = recorded(net, x, ["linear", "softmax"])
    assert handler.roles == [
        ("softmax", "input", (2, 3, 3)),
        ("linear", "input", (2, 3, 4)),
        ("linear", "weight", (4, 4)),
    ]


def test_a_norm_made_of_other_operators_is_one_call(net, x):
    handler, _ = recorded(net, x, ["rms_norm", "matmul"])
    assert [call for call in handler.seen if call[1] == "norm"] == [("rms_norm", "norm", 0)]


def test_results_and_arguments_are_replaced(net, x):
    expected = net.layers[0].norm(3 * x) * 5
    with Hooks(net) as hooks:
        hooks.handle_operators("layers.0.norm", ["rms_norm"], Recorder(3.0, 5.0))
        assert torch.equal(net.layers[0].norm(x), expected)


@pytest.mark.parametrize(
    ("spelling", "arguments"),
    [
        (torch.addmm, (torch.ones(2), torch.ones(3, 4), torch.ones(4, 2))),
        (torch.baddbmm, (torch.ones(1, 3, 2), torch.ones(1, 3, 4), torch.ones(1, 4, 2))),
    ],
    ids=["addmm", "baddbmm"],
)
def test_what_is_added_to_a_product_is_not_a_factor_of_it(spelling, arguments):
    class Layer(nn.Module):
        def forward(self, _x):
            return spelling(*arguments)

    handler = Recorder()
    with Hooks(Layer().eval()) as hooks:
        layer = hooks._modules[""]
        hooks.handle_operators("", ["linear", "bmm"], handler)
        layer(None)
    assert [shape for _, _, shape in handler.roles] == [tuple(entry.shape) for entry in arguments[1:]]


def test_keyword_arguments_are_seen_too():
    class Layer(nn.Module):
        def forward(self, x):
            return functional.linear(input=x, weight=torch.eye(4))

    layer, handler = Layer(), Recorder()
    with Hooks(layer) as hooks:
        hooks.handle_operators("", ["linear"], handler)
        layer(torch.ones(2, 4))
    assert [role for _, role, _ in handler.roles] == ["input", "weight"]


def test_nothing_is_left_behind_also_after_an_exception(net, x):
    expected = net(x)
    net.layers[0].error = True
    handler = Recorder(results=2.0)
    with pytest.raises(RuntimeError, match="as asked"):
        recorded(net, x, ["matmul"], handler)
    assert torch._C._len_torch_function_stack() == 0
    net.layers[0].error = False
    assert torch.equal(net(x), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_it_acts_again_after_an_exception_inside_the_block(net, x):
    handler = Recorder()
    with Hooks(net) as hooks:
        hooks.handle_operators("layers.0", ["matmul"], handler)
        net.layers[0].error = True
        with pytest.raises(RuntimeError):
            net(x)
        net.layers[0].error = False
        before = len(handler.seen)
        net(x)
    assert handler.seen[before:] == recorded(net, x, ["matmul"])[0].seen


@pytest.mark.parametrize("operators", [[], ["matmull"]])
def test_an_operator_that_there_is_not_is_refused(net, operators):
    with Hooks(net) as hooks, pytest.raises(HookError, match=r"choose from: .*linear"):
        hooks.handle_operators("layers.0", operators, Recorder())


@pytest.mark.parametrize("family", CARRYING)
def test_every_family_runs_products_and_a_norm_in_each_layer(family):
    model = random_model(family, layers=2)
    handler = Recorder()
    with Hooks(model) as hooks, torch.no_grad():
        path = next(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
        hooks.handle_operators(f"{path}.1", ["linear", "matmul", "rms_norm", "layer_norm"], handler)
        model(IDS)
    names = {operator for operator, _, _ in handler.seen}
    assert "linear" in names
    assert names & {"rms_norm", "layer_norm"}


@pytest.mark.parametrize(
    ("module", "operator"),
    [(nn.LayerNorm(4), "layer_norm"), (nn.RMSNorm(4), "rms_norm"), (nn.GELU(), "gelu"), (nn.Linear(2, 2), None)],
    ids=str,
)
def test_a_module_that_is_an_operator_is_known_by_its_class(module, operator):
    assert module_operator(module) == operator


@pytest.mark.parametrize(
    ("path", "bare"),
    [
        ("_fsdp_wrapped_module.self_attn.q_proj", "self_attn.q_proj"),
        ("mlp._checkpoint_wrapped_module.up", "mlp.up"),
        ("", ""),
    ],
)
def test_wrappers_do_not_change_a_name(path, bare):
    assert bare_name(path) == bare
