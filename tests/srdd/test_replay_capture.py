"""What is recorded is what the rest of the model saw, and recording leaves no trace."""

from __future__ import annotations

import pytest
import torch

from hal.structure import find_layer_stack
from srdd.faults import Fault, simulate
from srdd.replay.capture import record, where_given


@pytest.fixture
def layer_and_run(make_model):
    model = make_model("qwen2", layers=2)
    stack = find_layer_stack(model)
    return stack.layers[1], lambda: model(torch.arange(12).reshape(2, 6), use_cache=False), model


def test_every_call_is_recorded_as_a_tree(layer_and_run):
    layer, run, _ = layer_and_run
    with record(layer) as trees:
        run()
    (tree,) = trees
    assert [child.name for child in tree.children] == [
        "input_layernorm",
        "self_attn",
        "post_attention_layernorm",
        "mlp",
    ]
    assert {call.name for call in tree.walk()} >= {"", "mlp.down_proj", "self_attn.q_proj"}
    assert tree.children[3].children[-1].operators[0].name == "linear"


def test_recording_changes_nothing_and_leaves_no_hook(layer_and_run):
    layer, run, model = layer_and_run
    before = run().logits
    with record(layer):
        during = run().logits
    assert torch.equal(before, during)
    assert torch.equal(before, run().logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_module_fault_is_in_the_recorded_output_and_not_in_its_operator(layer_and_run):
    layer, run, model = layer_and_run
    with simulate(model, [Fault("bias", 1, site="mlp.down_proj")]), record(layer) as trees:
        run()
    call = next(call for call in trees[0].walk() if call.name == "mlp.down_proj")
    assert not torch.equal(call.output, call.operators[0].result)


def test_an_operator_fault_is_in_the_recorded_operator(layer_and_run):
    layer, run, model = layer_and_run
    with record(layer) as clean:
        run()
    with simulate(model, [Fault("bias", 1, operator="silu")]), record(layer) as faulty:
        run()

    def silu(tree):
        return next(entry.result for call in tree.walk() for entry in call.operators if entry.name == "silu")

    assert not torch.equal(silu(clean[0]), silu(faulty[0]))


def test_a_layer_that_raises_leaves_no_hook_and_no_mode(layer_and_run):
    layer, run, model = layer_and_run
    handle = layer.mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), record(layer):
        run()
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize(
    ("value", "pattern", "kept"),
    [
        ((1, 2), (5, 6), [1, 2]),
        ((1, 2), (5, None), [1, None]),
        ((1, (2, 3)), (5, (None, 7)), [1, [None, 3]]),
        ((1, 2), (5,), (1, 2)),
        (1, None, None),
        (None, 5, None),
    ],
)
def test_of_a_result_only_what_the_device_gave_too_is_kept(value, pattern, kept):
    assert where_given(value, pattern) == kept
