"""Each spelling of an operator is caught, once, and as no other operator."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from hal.operators import OPERATORS, OperatorTransform

X = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
W = torch.linspace(0, 1, 16).reshape(4, 4)
B = torch.linspace(0, 1, 40).reshape(2, 4, 5)
Z = torch.zeros(2, 3, 5)
TOKENS = torch.tensor([1, 2])
SPELLINGS = {
    "linear": [
        lambda: functional.linear(X, W),
        lambda: nn.Linear(4, 4)(X),
        lambda: torch.addmm(W, W, W),
        lambda: W.addmm(W, W),
    ],
    "matmul": [
        lambda: torch.matmul(X, W),
        lambda: torch.linalg.matmul(X, W),
        lambda: torch.mm(W, W),
        lambda: X.matmul(W),
        lambda: W.mm(W),
        lambda: X @ W,
    ],
    "bmm": [
        lambda: torch.bmm(X, B),
        lambda: X.bmm(B),
        lambda: torch.baddbmm(Z, X, B),
        lambda: Z.baddbmm(X, B),
    ],
    "softmax": [
        lambda: functional.softmax(X, dim=-1),
        lambda: torch.softmax(X, -1),
        lambda: torch.special.softmax(X, -1),
        lambda: X.softmax(-1),
        lambda: nn.Softmax(-1)(X),
    ],
    "silu": [lambda: functional.silu(X), lambda: nn.SiLU()(X)],
    "gelu": [lambda: functional.gelu(X), lambda: functional.gelu(X, approximate="tanh"), lambda: nn.GELU()(X)],
    "layer_norm": [
        lambda: functional.layer_norm(X, (4,)),
        lambda: torch.layer_norm(X, (4,)),
        lambda: nn.LayerNorm(4)(X),
    ],
    "rms_norm": [lambda: functional.rms_norm(X, (4,)), lambda: torch.rms_norm(X, (4,)), lambda: nn.RMSNorm(4)(X)],
    "attention": [lambda: functional.scaled_dot_product_attention(X, X, X)],
    "embedding": [lambda: functional.embedding(TOKENS, W), lambda: nn.Embedding(5, 4)(TOKENS)],
}
CASES = [(name, index) for name, spellings in SPELLINGS.items() for index in range(len(spellings))]


def test_every_operator_that_can_be_hooked_is_tested():
    assert set(SPELLINGS) == set(OPERATORS)


@pytest.mark.parametrize(("operator", "index"), CASES)
def test_each_spelling_of_an_operator_is_caught_once(operator, index):
    results = []

    def note(result):
        results.append(result)
        return result + 1

    with OperatorTransform(operator, note):
        changed = SPELLINGS[operator][index]()
    assert len(results) == 1
    assert torch.equal(changed, results[0] + 1)


@pytest.mark.parametrize(("operator", "index"), CASES)
def test_no_spelling_is_caught_as_another_operator(operator, index):
    def refuse(result):
        pytest.fail(f"caught as {other}")

    for other in set(OPERATORS) - {operator}:
        with OperatorTransform(other, refuse):
            SPELLINGS[operator][index]()
