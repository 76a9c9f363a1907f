"""Each of the nineteen documented differences has a case that an honest device passes and a device with it fails."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional

from conformance.cases.differences import DIFFERENCES
from conformance.runner import run_case
from hal.ops import CATALOGUE


def short(x):
    return x.to(torch.bfloat16).to(x.dtype) if x.dtype == torch.float32 else x


def short_product(a, b):
    return torch.matmul(short(a), short(b))


def unsteady(x, *arguments, **options):
    return torch.layer_norm(x, *arguments, **options) + torch.rand(()) * 1e-7


def alone_is_wrong(x, weight, bias=None):
    return functional.linear(x, weight, bias) * (1 + 1e-4 * (x.shape[0] == 1))


def through_float32(condition, x, y):
    where = torch._C._VariableFunctions.where
    if isinstance(x, torch.Tensor) and x.dtype == torch.int64:
        return where(condition, x.float(), y.float()).long()
    return where(condition, x, y)


def ignoring_mask(q, k, v, mask=None, causal=False, scale=None):
    return CATALOGUE["attention"].default(q, k, v, None, causal, scale)


def open_edges(x, edges):
    return CATALOGUE["histogram"].default(x[x != edges[-1]], edges)


def unchecked(logits, targets, ignored=-100):
    return logits.logsumexp(-1) - logits.gather(-1, targets.clamp(0, logits.shape[-1] - 1)[:, None])[:, 0]


def saturating_exponential(x):
    return torch._C._VariableFunctions.exp(x).clamp(max=torch.finfo(x.dtype).max)


def on_the_host(x):
    warnings.warn("The operator 'aten::lgamma.out' will fall back to run on the CPU.", UserWarning, stacklevel=1)
    return x


def uninitialised_pad(x, sizes):
    padded = torch.empty(*x.shape[:-1], x.shape[-1] + sum(sizes))
    padded[..., sizes[0] : padded.shape[-1] - sizes[1]] = x
    padded[..., 0] = torch.rand(())
    return padded


def wrong_single_column(x, weight, bias=None):
    result = torch._C._nn.linear(x, weight, bias)
    return result * 2 if weight.shape[0] == 1 else result


def linear_near_zero(x):
    return torch._C._VariableFunctions.expm1(x) if x.dtype == torch.float64 else x


def root_of_normal(x):
    return torch._C._VariableFunctions.sqrt(x.clamp(min=2.0**-126))


def seedless(_backend, _seed):
    return torch.Generator().manual_seed(0)


# What to do to a host backend: operators of its own, class attributes, and functions of torch to replace.
SABOTAGE = {
    "01-full-precision": ({"matmul": short_product}, {}, {}),
    "02-summation-order": ({"matmul": short_product}, {}, {}),
    "03-repeatability": ({}, {}, {(functional, "layer_norm"): unsteady}),
    "04-batch-invariance": ({"linear": alone_is_wrong}, {}, {}),
    "05-wide-floats": ({}, {"dtypes": (torch.float64,)}, {(torch.Tensor, "double"): lambda x: x.float()}),
    "06-dtype-table": ({}, {}, {(torch, "expm1"): linear_near_zero}),
    "07-large-integers": ({}, {}, {(torch, "where"): through_float32}),
    "08-gelu-form": ({"gelu": CATALOGUE["gelu_tanh"].default}, {}, {}),
    "09-attention-masks": ({"attention": ignoring_mask}, {}, {}),
    "10-ties": ({"histogram": open_edges}, {}, {}),
    "11-targets": ({"cross_entropy": unchecked}, {}, {}),
    "12-overflow": ({}, {}, {(torch, "exp"): saturating_exponential}),
    "13-random-streams": ({}, {"generator": seedless}, {}),
    "14-host-fallback": ({}, {}, {}),
    "15-optimizer": ({}, {}, {(torch.optim, "AdamW"): torch.optim.Adam}),
    "16-memory-layout": ({}, {}, {(functional, "linear"): wrong_single_column}),
    "17-fresh-memory": ({}, {}, {(functional, "pad"): uninitialised_pad}),
    "18-subnormals": ({}, {}, {(torch, "sqrt"): root_of_normal}),
    "19-model-accuracy": ({}, {}, {}),
}


def test_there_are_nineteen():
    assert [name[:2] for name, *_ in DIFFERENCES] == [f"{number:02}" for number in range(1, 20)]
    assert set(SABOTAGE) == {name for name, *_ in DIFFERENCES}


@pytest.mark.parametrize("name", sorted(SABOTAGE))
def test_an_honest_device_passes(make_backend, case_named, name):
    result = run_case(make_backend(), case_named(f"differences/{name}"))
    assert (result.verdict, result.message) == ("pass", "")


@pytest.mark.parametrize("name", sorted(set(SABOTAGE) - {"14-host-fallback", "19-model-accuracy"}))
def test_a_device_with_the_difference_fails(make_backend, case_named, monkeypatch, name):
    overrides, attributes, functions = SABOTAGE[name]
    for (owner, attribute), function in functions.items():
        monkeypatch.setattr(owner, attribute, function)
    result = run_case(make_backend(overrides, **attributes), case_named(f"differences/{name}"))
    monkeypatch.undo()
    assert result.verdict == "fail"
    assert result.message


def test_running_on_the_host_is_noticed_by_the_vendors_warning(make_backend, case_named, monkeypatch):
    from conformance.cases import differences_operators

    monkeypatch.setitem(differences_operators.RARE, "lgamma", on_the_host)
    result = run_case(make_backend(), case_named("differences/14-host-fallback"))
    assert result.verdict == "fail"
    assert "lgamma ran on the host" in result.message


@pytest.mark.parametrize(
    "name", ["differences/19-model-accuracy", "model/gradient/float32", "layers/decoder-layer/float32"]
)
def test_a_model_computed_with_short_products_fails(make_backend, case_named, monkeypatch, name):
    from conformance.cases import model

    original = model._on_device

    def shortened(backend, dtype):
        network = original(backend, dtype)
        for module in network.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(lambda _module, args: (short(args[0]),))
        return network

    monkeypatch.setattr(model, "_on_device", shortened)
    result = run_case(make_backend(), case_named(name))
    assert result.verdict == "fail"
    assert "in units of what rounding explains" in result.message
