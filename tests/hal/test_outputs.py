"""Hidden states are read from and written into whatever a module returns."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch

from hal import HookError
from hal.outputs import hidden_states, with_hidden_states

H = torch.arange(12.0).reshape(1, 3, 4)
R = 100 * torch.ones(1, 3, 4)
MASK = torch.ones(1, 1, 3, 3)
NEW = -torch.ones(1, 3, 4)


class Pair(NamedTuple):
    hidden: torch.Tensor
    extra: Any


def test_a_tensor_is_itself():
    assert hidden_states(H) is H
    assert with_hidden_states(H, NEW) is NEW


@pytest.mark.parametrize("role", ["layer", "submodule"])
@pytest.mark.parametrize(
    "output",
    [(H,), (H, None), (H, MASK), (H, (R, R)), (H, R, R), [H, None], Pair(H, None), Pair(H, MASK)],
    ids=lambda output: f"{type(output).__name__}-{len(output)}",
)
def test_of_a_tuple_or_list_the_first_entry_counts_and_the_rest_stays(output, role):
    assert hidden_states(output, role) is H
    replaced = with_hidden_states(output, NEW, role)
    assert type(replaced) is type(output)
    assert replaced[0] is NEW
    assert all(after is before for after, before in zip(replaced[1:], output[1:], strict=True))


@pytest.mark.parametrize("output", [(H, R), [H, R], Pair(H, R)], ids=lambda output: type(output).__name__)
def test_a_layers_hidden_and_residual_stand_for_their_sum(output):
    assert torch.equal(hidden_states(output), H + R)
    replaced = with_hidden_states(output, NEW)
    assert type(replaced) is type(output)
    assert torch.equal(hidden_states(replaced), NEW)
    assert torch.equal(replaced[1], torch.zeros_like(NEW))


def test_the_new_residual_is_fresh_because_the_next_layer_may_write_into_it():
    first, second = with_hidden_states((H, R), NEW), with_hidden_states((H, R), NEW)
    first[1].add_(1)
    assert float(second[1].abs().max()) == 0
    assert float(R.min()) == 100


def test_a_submodules_pair_is_not_summed():
    """A normalisation returns (normed, residual): only the first is its result."""
    assert hidden_states((H, R), "submodule") is H
    replaced = with_hidden_states((H, R), NEW, "submodule")
    assert replaced[0] is NEW
    assert replaced[1] is R


def test_a_residual_of_another_length_is_refused():
    with pytest.raises(HookError, match=r"\(1, 3, 4\) and \(1, 6, 4\)"):
        hidden_states((H, torch.ones(1, 6, 4)))


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (None, "a NoneType"),
        (3.0, "a float"),
        ((), "a tuple of nothing"),
        ((None, H), "a tuple of NoneType, Tensor"),
        ({"hidden": H}, "a dict"),
        (OrderedDict(hidden=H), "an? OrderedDict"),
    ],
)
@pytest.mark.parametrize("operation", [hidden_states, lambda output: with_hidden_states(output, NEW)])
def test_other_outputs_are_refused_by_what_they_are(output, named, operation):
    with pytest.raises(HookError, match=f"a module returned {named}: hooks understand") as caught:
        operation(output)
    assert caught.value.exit_code == 2
