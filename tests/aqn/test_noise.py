"""The noise formula, its variance and its gradients against float64; and whose noise each element gets."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aqn.noise import COLUMN_BITS, POSITION_BITS, Stream, backward_noise, forward_noise
from aqn.tokens import token_rows
from hal import noise
from hal.errors import HookError

EXACT = Stream(3, 17, "exact")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def values(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw64(heads, positions, width, stream=EXACT):
    """e of every (head, position, column), by the numbers the module's docstring promises."""
    index = (
        (torch.arange(heads) << (POSITION_BITS + COLUMN_BITS))[:, None, None]
        + (torch.as_tensor(positions) << COLUMN_BITS)[:, None]
        + torch.arange(width)
    )
    return noise.normal_at(index, seed=stream.seed, stream=stream.key).double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_result_is_x_plus_sigma_times_its_size_times_a_normal_draw(dtype):
    x = values(2, 5, 12, dtype=dtype)
    expected = x.double() + 0.05 * x.double().abs() * draw64(1, range(5), 12)
    result = forward_noise(x, 0.05, EXACT, token_rows(torch.arange(5), 2))
    assert result.dtype == dtype
    # float32 inside: three roundings, then one to the result's dtype
    roundoff = 3 * 2.0**-24 * (1 + 0.05 * 6.34) + torch.finfo(dtype).eps / 2
    assert ((result.double() - expected).abs() <= roundoff * expected.abs() + 1e-30).all()


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("draws", ["exact", "fast"])
def test_the_variance_is_sigma_squared_x_squared(sigma, draws):
    x = values(1, 64, 4096)
    x[x.abs() < 0.1] = 0.1
    relative = ((forward_noise(x, sigma, Stream(1, 2, draws), token_rows(torch.arange(64), 1)) - x) / x.abs()).double()
    count = relative.numel()
    # Five standard errors of a mean and of a variance of normal draws.
    assert abs(relative.mean()) < 5 * sigma / count**0.5
    assert abs(relative.var() / sigma**2 - 1) < 5 * (2 / count) ** 0.5 + 2e-3 * (draws == "fast")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_is_one_plus_sigma_sign_times_the_same_draw(dtype):
    x = values(2, 5, 12, dtype=dtype).requires_grad_()
    incoming = values(2, 5, 12, dtype=dtype, seed=1)
    forward_noise(x, 0.3, EXACT, token_rows(torch.arange(5), 2)).backward(incoming)
    expected = (1 + 0.3 * x.detach().double().sign() * draw64(1, range(5), 12)) * incoming.double()
    assert torch.allclose(x.grad.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_backward_noise_leaves_values_alone_and_disturbs_the_gradient():
    x = values(2, 5, 12).requires_grad_()
    incoming = values(2, 5, 12, seed=1)
    passed = backward_noise(x, 0.2, EXACT, token_rows(torch.arange(5), 2))
    assert torch.equal(passed, x)
    passed.backward(incoming)
    expected = incoming.double() + 0.2 * incoming.double().abs() * draw64(1, range(5), 12)
    assert torch.allclose(x.grad.double(), expected, rtol=1e-6, atol=1e-7)


def test_a_weights_gradient_is_numbered_in_row_major_order():
    weight = values(6, 10).requires_grad_()
    incoming = values(6, 10, seed=1)
    backward_noise(weight, 0.2, EXACT, None).backward(incoming)
    draw = noise.normal((6, 10), seed=3, stream=17)
    assert torch.allclose(weight.grad, incoming + 0.2 * incoming.abs() * draw)


def test_it_works_without_gradients_and_on_nothing():
    with torch.inference_mode():
        x = values(1, 4, 8)
        assert not torch.equal(forward_noise(x, 0.1, EXACT, token_rows(torch.arange(4), 1)), x)
        empty = torch.empty(0, 8)
        assert forward_noise(empty, 0.1, EXACT, None) is empty


def test_a_tensor_larger_than_a_piece_is_not_cut_visibly():
    width, length = 1000, 300  # several pieces, none of them at a row's end in elements
    x = values(1, length, width)
    expected = x.double() + 0.05 * x.double().abs() * draw64(1, range(length), width)
    result = forward_noise(x, 0.05, EXACT, token_rows(torch.arange(length), 1))
    assert torch.allclose(result.double(), expected, rtol=1e-6)


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 6),
    start=st.integers(0, 1000),
    width=st.sampled_from([1, 4, 7]),
    heads=st.sampled_from([0, 1, 3]),
)
def test_a_token_gets_the_same_noise_alone_as_in_any_batch(batch, length, start, width, heads):
    shape = (batch, heads, length, width) if heads else (batch, length, width)
    x = torch.ones(shape)
    together = forward_noise(x, 0.1, EXACT, token_rows(torch.arange(start, start + length), batch), heads > 0)
    for row, place in itertools.product(range(batch), range(length)):
        one = x[row : row + 1, ..., place : place + 1, :]
        alone = forward_noise(one, 0.1, EXACT, token_rows(torch.tensor([start + place]), 1), heads > 0)
        assert torch.equal(alone[0, ..., 0, :], together[row, ..., place, :])


@given(positions=st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=4))
def test_padded_and_packed_sequences_get_the_noise_of_their_own_positions(positions):
    table = torch.tensor(positions)
    x = torch.ones(len(positions), 3, 8)
    result = forward_noise(x, 0.1, EXACT, token_rows(table, len(positions)))
    packed = forward_noise(x.view(-1, 8), 0.1, EXACT, token_rows(table.view(-1), 1))
    expected = (1 + 0.1 * draw64(1, range(51), 8)[0])[table]
    assert torch.allclose(result.double(), expected, rtol=1e-6)
    assert torch.equal(packed.view_as(result), result)


def test_heads_have_noise_of_their_own_also_when_positions_differ():
    table = torch.tensor([[0, 1, 2], [4, 5, 9]])
    result = forward_noise(torch.ones(2, 2, 3, 4), 0.1, EXACT, token_rows(table, 2), heads_first=True)
    draws = draw64(2, range(10), 4)
    expected = torch.stack([1 + 0.1 * draws[:, row] for row in table])
    assert torch.allclose(result.double(), expected, rtol=1e-6)


def test_a_norm_of_heads_behind_the_tokens_is_numbered_by_token():
    tokens = token_rows(torch.arange(5), 2)
    together = forward_noise(torch.ones(2, 5, 3, 4), 0.1, EXACT, tokens)
    alone = forward_noise(torch.ones(1, 1, 3, 4), 0.1, EXACT, token_rows(torch.tensor([4]), 1))
    assert torch.equal(together[1, 4], alone[0, 0])


def test_all_keys_of_a_cache_get_the_noise_of_their_own_tokens():
    whole = forward_noise(torch.ones(2, 6, 8), 0.1, EXACT, token_rows(torch.arange(6), 2))
    x, tokens = torch.ones(2, 1, 6, 8), token_rows(torch.tensor([5]), 2)
    keys = forward_noise(x, 0.1, EXACT, tokens.of_product(x.shape))
    assert torch.equal(keys[:, 0], whole)


def test_a_result_may_be_added_to_in_place_in_training():
    x = torch.ones(2, 3, requires_grad=True)
    result = forward_noise(2 * x, 0.1, EXACT, None)
    result += 1
    result.sum().backward()
    assert (x.grad - 2).abs().max() < 2


def test_the_same_numbers_come_again_and_other_keys_give_others():
    x, tokens = torch.ones(1, 4, 8), token_rows(torch.arange(4), 1)
    first = forward_noise(x, 0.1, EXACT, tokens)
    assert torch.equal(first, forward_noise(x, 0.1, EXACT, tokens))
    assert not torch.equal(first, forward_noise(x, 0.1, Stream(4, 17, "exact"), tokens))
    assert not torch.equal(first, forward_noise(x, 0.1, Stream(3, 18, "exact"), tokens))


def test_fast_noise_of_separate_steps_of_generation_differs():
    fast = Stream(3, 17, "fast")
    steps = [
        forward_noise(torch.ones(2, 1, 8), 0.1, fast, token_rows(torch.tensor([[a], [b]]), 2))
        for a, b in [(3, 9), (4, 10)]
    ]
    assert not torch.equal(steps[0], steps[1])


def test_more_columns_than_are_numbered_are_refused():
    wide = torch.ones(1, 1, 1).expand(1, 1, (1 << COLUMN_BITS) + 1)
    with pytest.raises(HookError, match="columns"):
        forward_noise(wide, 0.1, EXACT, token_rows(torch.arange(1), 1))
