"""An engine's fused and sharded modules are taken apart into the operators of the model in one piece."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from hal import HookError
from hal.engines.fused import Part, has_fused_experts, is_gated_activation, linear_parts
from hal.hooks import Hooks


class LinearBase(nn.Module):
    """What engines' linear modules have in common, by vLLM's names: a tensor and a bias come back."""

    def __init__(self, width, **known):
        super().__init__()
        self.proj = nn.Linear(8, width)
        for name, value in known.items():
            setattr(self, name, value)

    def forward(self, x):
        return functional.linear(x, self.proj.weight, self.proj.bias), None


class ReplicatedLinear(LinearBase): ...


class RowParallelLinear(LinearBase): ...


class ColumnParallelLinear(LinearBase): ...


class MergedColumnParallelLinear(ColumnParallelLinear): ...


class QKVParallelLinear(ColumnParallelLinear): ...


class AscendQKVParallelLinear(QKVParallelLinear):
    """As vllm-ascend extends vLLM's class."""


class AscendRowParallelLinear(RowParallelLinear): ...


class AscendRMSNorm(nn.RMSNorm): ...


class SiluAndMul(nn.Module):
    def forward(self, x):
        gate, up = x.chunk(2, -1)
        return functional.silu(gate) * up


class AscendSiluAndMul(SiluAndMul): ...


class SharedFusedMoE(nn.Module): ...


def attention(rank=0, ranks=1, kind=QKVParallelLinear, heads=4, kv_heads=2):
    """Heads of 2 columns, sharded as vLLM shards them: key-value heads are copied when there are too few."""
    held = max(1, kv_heads // ranks)
    return kind(
        2 * (heads // ranks + 2 * held),
        num_heads=heads // ranks,
        num_kv_heads=held,
        head_size=2,
        tp_rank=rank,
        num_kv_head_replicas=max(1, ranks // kv_heads),
    )


@pytest.mark.parametrize("kind", [QKVParallelLinear, AscendQKVParallelLinear])
def test_attention_projections(kind):
    assert linear_parts(attention(kind=kind), "self_attn.qkv_proj") == (
        Part("self_attn.q_proj", 0, 8, 0),
        Part("self_attn.k_proj", 8, 12, 0),
        Part("self_attn.v_proj", 12, 16, 0),
    )


def test_a_shard_knows_its_columns():
    assert [part.first for part in linear_parts(attention(1, 2), "qkv_proj")] == [4, 2, 2]


def test_copied_heads_have_the_columns_of_the_head_they_copy():
    firsts = [[part.first for part in linear_parts(attention(rank, 4), "qkv_proj")] for rank in range(4)]
    assert firsts == [[0, 0, 0], [2, 0, 0], [4, 2, 2], [6, 2, 2]]


def test_merged_columns():
    merged = MergedColumnParallelLinear(12, output_sizes=[12, 12], tp_size=2, tp_rank=1)
    assert linear_parts(merged, "mlp.gate_up_proj") == (
        Part("mlp.gate_proj", 0, 6, 6),
        Part("mlp.up_proj", 6, 12, 6),
    )
    assert [part.site for part in linear_parts(merged, "mlp.in_proj")] == ["mlp.in_proj_0", "mlp.in_proj_1"]


@pytest.mark.parametrize("kind", [ReplicatedLinear, RowParallelLinear, AscendRowParallelLinear])
def test_a_result_that_every_process_has_is_one_part(kind):
    assert linear_parts(kind(8, output_size=8), "o_proj") == (Part("o_proj", 0, 8, 0),)


def test_columns_of_one_operator():
    sharded = ColumnParallelLinear(4, output_size=8, output_size_per_partition=4, tp_rank=1, gather_output=False)
    assert linear_parts(sharded, "fc1") == (Part("fc1", 0, 4, 4),)


def test_what_is_no_engines_module_is_left_alone():
    assert linear_parts(nn.Linear(2, 2), "q_proj") is None
    assert not is_gated_activation(nn.SiLU())
    assert is_gated_activation(AscendSiluAndMul())
    assert has_fused_experts(SharedFusedMoE())
    assert not has_fused_experts(nn.ModuleList())


class Layer(nn.Module):
    """A layer in one piece, or as an engine fuses and shards it."""

    def __init__(self, ranks=1, rank=0):
        super().__init__()
        self.input_layernorm = AscendRMSNorm(8)
        self.qkv_proj = attention(rank, ranks)
        self.gate_up_proj = MergedColumnParallelLinear(16 // ranks, output_sizes=[8, 8], tp_size=ranks, tp_rank=rank)
        self.act_fn = AscendSiluAndMul()

    def forward(self, x):
        x = self.input_layernorm(x)
        return self.qkv_proj(x)[0], self.act_fn(self.gate_up_proj(x)[0])


class Mark:
    """Writes into each result which of the whole model's columns it holds, and remembers the calls."""

    def __init__(self):
        self.calls = []

    def argument(self, call, tensor, role):
        return tensor

    def result(self, call, tensor):
        self.calls.append((call.site, call.operator, call.first_column, tensor.shape[-1]))
        return torch.arange(call.first_column, call.first_column + tensor.shape[-1]).expand(tensor.shape).float()


def marked(layer, operators):
    model, mark = nn.Sequential(layer), Mark()
    with Hooks(model) as hooks, torch.no_grad():
        hooks.handle_operators("0", operators, mark)
        return model(torch.ones(3, 8)), mark.calls


def test_each_operator_of_a_fused_module_is_handled_once_under_its_own_name():
    (projected, _), calls = marked(Layer(), ["linear"])
    assert calls == [
        ("q_proj", "linear", 0, 8),
        ("k_proj", "linear", 0, 4),
        ("v_proj", "linear", 0, 4),
        ("gate_proj", "linear", 0, 8),
        ("up_proj", "linear", 0, 8),
    ]
    assert projected[0].tolist() == [*range(8), *range(4), *range(4)]


def test_a_shard_is_handled_as_its_columns_of_the_whole():
    _, calls = marked(Layer(2, 1), ["linear", "silu"])
    assert calls == [
        ("q_proj", "linear", 4, 4),
        ("k_proj", "linear", 2, 2),
        ("v_proj", "linear", 2, 2),
        ("gate_proj", "linear", 4, 4),
        ("up_proj", "linear", 4, 4),
        ("act_fn", "silu", 4, 4),
    ]


def test_a_gated_activation_is_made_again_from_its_disturbed_half():
    layer = Layer()
    with torch.no_grad():
        gated = layer.gate_up_proj(layer.input_layernorm(torch.ones(3, 8)))[0]
    (_, made), _ = marked(layer, ["silu"])
    assert torch.equal(made, torch.arange(8.0) * gated[..., 8:])


def test_experts_in_one_kernel_are_refused():
    layer = Layer()
    layer.experts = SharedFusedMoE()
    with pytest.raises(HookError, match=r"experts at 'experts'.* use noise of kind 'layer'"):
        marked(layer, ["linear"])
