"""On the host torch's functions are those of torch's files, whatever this process has put in their place."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hal.shipped_torch import replaced_in_torch, replacements, torch_as_shipped

X = torch.linspace(-2, 2, 12).reshape(3, 4)


def doubled(own):
    return lambda *args, **kwargs: 2 * own(*args, **kwargs)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 4)


USES = {
    "torch.nn.functional.silu": (functional, "silu", lambda: functional.silu(X)),
    "torch.nn.functional.softmax": (functional, "softmax", lambda: functional.softmax(X, -1)),
    "torch.nn.functional.linear": (functional, "linear", lambda: functional.linear(X, X)),
    "torch.nn.functional.max_pool1d": (functional, "max_pool1d", lambda: functional.max_pool1d(X, 2)),
    "torch.rsqrt": (torch, "rsqrt", lambda: torch.rsqrt(X.abs() + 1)),
    "torch.einsum": (torch, "einsum", lambda: torch.einsum("ij,kj->ik", X, X)),
    "torch.Tensor.pow": (torch.Tensor, "pow", lambda: X.pow(2)),
    "torch.Tensor.norm": (torch.Tensor, "norm", lambda: X.norm(2)),
    "torch.Tensor.__matmul__": (torch.Tensor, "__matmul__", lambda: X @ X.T),
    "torch.nn.GELU.forward": (nn.GELU, "forward", lambda: nn.GELU()(X)),
    "torch.nn.GELU.__call__": (nn.GELU, "__call__", lambda: nn.GELU()(X)),
    "torch.nn.Module.__call__": (nn.Module, "__call__", lambda: nn.GELU()(X)),
}


@pytest.mark.parametrize("name", USES)
def test_a_function_that_was_replaced_is_torch_s_own_again_inside_the_block(monkeypatch, name):
    owner, attribute, use = USES[name]
    right = use()
    monkeypatch.setattr(owner, attribute, doubled(getattr(owner, attribute)))
    with torch_as_shipped():
        assert torch.equal(use(), right)
    assert torch.equal(use(), 2 * right)
    assert replaced_in_torch(nn.GELU()) == (name,)


# In a process of its own, because what was there when torch was first looked through is kept.
REPLACED_BEFORE = """
import functools, torch
from torch import nn
from torch.nn import functional

x = torch.linspace(-2, 2, 12).reshape(3, 4)
uses = {uses}
right = {{name: use() for name, (owner, attribute, use) in uses.items()}}
own = {{name: vars(owner).get(attribute) for name, (owner, attribute, use) in uses.items()}}
for owner, attribute, _ in uses.values():
    held = getattr(owner, attribute)
    setattr(owner, attribute, functools.wraps(held)(lambda *args, held=held, **kwargs: 2 * held(*args, **kwargs)))

from hal.shipped_torch import replaced_in_torch, torch_as_shipped

assert set(replaced_in_torch(nn.GELU())) == set(uses)
with torch_as_shipped():
    for name, (_, _, use) in uses.items():
        assert torch.equal(use(), right[name]), name
for name, (owner, attribute, use) in uses.items():
    assert not torch.equal(use(), right[name]), name
for name, (owner, attribute, _) in uses.items():
    delattr(owner, attribute) if own[name] is None else setattr(owner, attribute, own[name])
assert replaced_in_torch(nn.GELU()) == ()
"""


def test_what_was_replaced_before_is_taken_from_torch_s_files():
    uses = """{
        "torch.nn.functional.silu": (functional, "silu", lambda: functional.silu(x)),
        "torch.nn.functional.softmax": (functional, "softmax", lambda: functional.softmax(x, -1)),
        "torch.nn.functional.threshold": (functional, "threshold", lambda: functional.threshold(x, 0.1, 20)),
        "torch.nn.functional.linear": (functional, "linear", lambda: functional.linear(x, x)),
        "torch.rsqrt": (torch, "rsqrt", lambda: torch.rsqrt(x.abs() + 1)),
        "torch.einsum": (torch, "einsum", lambda: torch.einsum("ij,kj->ik", x, x)),
        "torch.Tensor.pow": (torch.Tensor, "pow", lambda: x.pow(2)),
        "torch.nn.GELU.forward": (nn.GELU, "forward", lambda: nn.GELU()(x)),
    }"""
    ran = subprocess.run(
        [sys.executable, "-c", REPLACED_BEFORE.format(uses=uses)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_a_module_class_that_was_replaced_is_torch_s_own_again(monkeypatch):
    class Fused(nn.LayerNorm):
        """Stands for a vendor's."""

    own = nn.LayerNorm
    monkeypatch.setattr(nn, "LayerNorm", Fused)
    with torch_as_shipped():
        assert nn.LayerNorm is own
    assert nn.LayerNorm is Fused


def test_a_function_of_torch_s_under_the_name_of_another_counts_as_replaced(monkeypatch):
    monkeypatch.setattr(functional, "silu", functional.relu)
    assert replaced_in_torch(nn.GELU()) == ("torch.nn.functional.silu",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's, when it is first asked to compile
def test_a_compiled_function_counts_as_replaced(monkeypatch):
    monkeypatch.setattr(functional, "silu", torch.compile(functional.silu))
    assert replaced_in_torch(nn.GELU()) == ("torch.nn.functional.silu",)


def test_methods_of_modules_that_the_model_does_not_have_are_not_named(monkeypatch):
    monkeypatch.setattr(nn.LSTM, "forward", doubled(nn.LSTM.forward))
    assert replaced_in_torch(nn.GELU()) == ()
    assert replaced_in_torch(nn.LSTM(2, 2)) == ("torch.nn.LSTM.forward",)


@pytest.mark.parametrize("name", ["__repr__", "pin_memory"])
def test_how_a_tensor_is_shown_and_where_it_lies_may_be_anyone_s(monkeypatch, name):
    monkeypatch.setattr(torch.Tensor, name, doubled(getattr(torch.Tensor, name)))
    assert replaced_in_torch(nn.GELU()) == ()


def test_of_torch_as_it_is_nothing_is_replaced(linear):
    assert replaced_in_torch(linear) == ()
    assert replacements() == {}


class Doubling(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return 2 * func(*args, **(kwargs or {}))


class DoublingFunctions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return 2 * func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Doubling, DoublingFunctions])
def test_modes_around_the_block_do_not_reach_into_it(mode):
    right = functional.silu(X)
    with mode():
        with torch_as_shipped():
            own = functional.silu(X)
        doubled_again = functional.silu(X)
    assert torch.equal(own, right)
    assert torch.equal(doubled_again, 2 * right)


@pytest.mark.parametrize("mode", [Doubling, DoublingFunctions])
def test_a_mode_inside_the_block_is_active(mode):
    right = functional.silu(X)
    with torch_as_shipped(), mode():
        wrong = functional.silu(X)
    assert torch.equal(wrong, 2 * right)


def test_a_device_chosen_inside_the_block_is_that_of_new_tensors():
    with torch.device("cpu"), torch_as_shipped(), torch.device("meta"):
        assert torch.empty(1).is_meta


def test_hooks_on_every_module_do_not_reach_into_the_block(linear):
    right = linear(X)
    hooks = [
        register_module_forward_hook(lambda _module, _args, output: 2 * output),
        register_module_forward_hook(lambda _module, _args, _kwargs, output: 2 * output, with_kwargs=True),
        register_module_forward_pre_hook(lambda _module, args: (2 * args[0],)),
    ]
    try:
        wrong = linear(X)
        with torch_as_shipped():
            assert torch.equal(linear(X), right)
        assert torch.equal(linear(X), wrong)
        assert not torch.equal(wrong, right)
    finally:
        for hook in hooks:
            hook.remove()


def test_everything_is_as_before_behind_a_block_that_raises(monkeypatch):
    replacement = doubled(functional.silu)
    monkeypatch.setattr(functional, "silu", replacement)
    with pytest.raises(ZeroDivisionError), torch_as_shipped():
        raise ZeroDivisionError
    assert functional.silu is replacement


def test_a_mode_that_is_handed_a_replacement_finds_what_torch_has(monkeypatch):
    own = functional.silu
    monkeypatch.setattr(functional, "silu", functools.partial(own))
    monkeypatch.setattr(torch.Tensor, "pow", doubled(torch.Tensor.pow))
    found = replacements()
    assert torch.equal(found[functional.silu](X), own(X))
    assert found[torch.Tensor.pow] is torch._C.TensorBase.pow


def test_a_block_inside_a_block_leaves_modes_of_the_outer_one_active(monkeypatch):
    right = functional.silu(X)
    monkeypatch.setattr(functional, "silu", doubled(functional.silu))
    with torch_as_shipped(), Doubling(), torch_as_shipped():
        wrong = functional.silu(X)
    assert torch.equal(wrong, 2 * right)
    assert torch.equal(functional.silu(X), 2 * right)
