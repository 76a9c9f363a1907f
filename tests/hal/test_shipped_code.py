"""transformers' code is taken as its files have it, whatever this process has put in its place."""

from __future__ import annotations

import functools
import sys

import pytest
from torch import nn
from transformers.models.bert import modeling_bert
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2

from hal.shipped_code import replaced, shipped_class

QWEN2 = modeling_qwen2.__name__


@pytest.mark.parametrize(
    "module",
    [modeling_bert, modeling_deepseek_v3, modeling_gpt2, modeling_llama, modeling_qwen2],
    ids=lambda m: m.__name__,
)
def test_of_a_module_that_nobody_touched_nothing_is_replaced(module):
    assert replaced(module.__name__) == ()


def test_a_class_of_an_untouched_module_is_itself():
    assert shipped_class(modeling_qwen2.Qwen2MLP) is modeling_qwen2.Qwen2MLP
    assert shipped_class(nn.Linear) is nn.Linear


def wrapped(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


@pytest.mark.parametrize(
    ("owner", "name", "value", "found"),
    [
        (modeling_qwen2, "rotate_half", lambda x: x, "rotate_half"),
        (modeling_qwen2, "rotate_half", wrapped(modeling_qwen2.rotate_half), "rotate_half"),
        (modeling_qwen2, "Qwen2MLP", nn.Identity, "Qwen2MLP"),
        (modeling_qwen2.Qwen2MLP, "forward", lambda self, x: x, "Qwen2MLP.forward"),
        (modeling_qwen2.Qwen2MLP, "forward", wrapped(modeling_qwen2.Qwen2MLP.forward), "Qwen2MLP.forward"),
        (
            modeling_qwen2.Qwen2RotaryEmbedding,
            "compute_default_rope_parameters",
            staticmethod(lambda *_: None),
            "Qwen2RotaryEmbedding.compute_default_rope_parameters",
        ),
    ],
)
def test_what_is_replaced_is_named_and_the_file_s_own_is_found(monkeypatch, owner, name, value, found):
    monkeypatch.setattr(owner, name, value)
    assert replaced(QWEN2) == (found,)
    own = shipped_class(modeling_qwen2.Qwen2ForCausalLM)
    assert own is not modeling_qwen2.Qwen2ForCausalLM
    assert own.__name__ == "Qwen2ForCausalLM"
    assert vars(sys.modules[own.__module__])["rotate_half"] is not modeling_qwen2.rotate_half


def test_a_method_that_the_file_inherits_counts_where_it_is_put_in(monkeypatch):
    monkeypatch.setattr(modeling_qwen2.Qwen2DecoderLayer, "__call__", lambda self, *_: None)
    assert replaced(QWEN2) == ("Qwen2DecoderLayer.__call__",)


def test_once_undone_the_live_class_is_taken_again(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(modeling_qwen2.Qwen2MLP, "forward", lambda self, x: x)
        own = shipped_class(modeling_qwen2.Qwen2MLP)
        assert own is not modeling_qwen2.Qwen2MLP
        assert shipped_class(own) is own
    assert shipped_class(modeling_qwen2.Qwen2MLP) is modeling_qwen2.Qwen2MLP


def test_code_that_is_not_transformers_own_is_nobody_s_to_restore():
    assert replaced("torch.nn") == ()
    assert replaced("transformers.no_such_module") == ()
