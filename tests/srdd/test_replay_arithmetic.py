"""Wide arithmetic never narrows; random roundings reproduce the size of real ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from srdd.probes.samples import least_rounding
from srdd.replay.accumulation import product_spread, tie_spread
from srdd.replay.arithmetic import RoundedArithmetic, RoundingSpread, WeightsNotHeldError, WideArithmetic, widened


def test_conversions_to_a_narrower_dtype_keep_the_width():
    x = torch.randn(8, dtype=torch.float64)
    with WideArithmetic():
        narrowed = (x.to(torch.float32), x.bfloat16(), x.half(), torch.softmax(x, -1, dtype=torch.float32))
    assert all(value.dtype == torch.float64 for value in narrowed)
    assert torch.equal(narrowed[0], x)


def test_integers_and_booleans_are_left_alone():
    with WideArithmetic():
        assert torch.arange(3).to(torch.int32).dtype == torch.int32
        assert (torch.arange(3) > 1).dtype == torch.bool


@pytest.mark.parametrize("function", [torch.add, torch.mul, torch.matmul, functional.linear])
def test_what_has_no_values_is_refused(function):
    x = torch.randn(4, 4, dtype=torch.float64)
    with WideArithmetic(), pytest.raises(WeightsNotHeldError, match="does not hold"):
        function(x, torch.empty(4, 4, dtype=torch.float64, device="meta"))


def spread_of(function, *inputs, dtype=torch.bfloat16, draws=64):
    def run(arithmetic):
        with arithmetic:
            return [function(*(value.double() for value in inputs))]

    exact = run(WideArithmetic())
    roundoff = torch.finfo(dtype).eps / 2
    return exact[0], RoundingSpread(run, exact, roundoff, seed=1)(draws)[0]


@pytest.mark.parametrize(("dtype", "rounded"), [(torch.float32, True), (torch.bfloat16, False), (torch.int64, False)])
def test_a_given_value_is_disturbed_if_it_is_finer_than_the_arithmetic(dtype, rounded):
    value = torch.arange(1, 33).to(dtype)
    arithmetic = RoundedArithmetic(2.0**-9, torch.Generator().manual_seed(0))
    off = (arithmetic.given(value) / value - 1).abs().max()
    assert (2.0**-11 < off < 2.0**-8) if rounded else off == 0
    assert torch.equal(WideArithmetic().given(value), value)


CHAINS = {
    "sum of products": lambda x, y: (x * y + x) * y,
    "softmax": lambda x, y: torch.softmax(x * y, -1) * y,
    "root mean square norm": lambda x, y: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * y,
    "swish": lambda x, y: functional.silu(x) * y,
    "attention with a mask": lambda x, y: functional.scaled_dot_product_attention(
        x[None], y[None], x[None], is_causal=True
    )[0],
}


@pytest.mark.parametrize("name", CHAINS)
def test_real_bfloat16_errors_lie_within_eight_spreads_and_are_not_dwarfed_by_them(name):
    torch.manual_seed(0)
    x, y = torch.randn(64, 32).bfloat16(), torch.randn(64, 32).bfloat16()
    exact, spread = spread_of(CHAINS[name], x, y)
    error = (CHAINS[name](x, y).double() - exact).abs()
    assert torch.isfinite(spread).all()
    assert (error <= 8 * spread + 2.0**-8 * exact.abs() + 1e-30).all()
    assert spread.median() < 30 * error.median() + 1e-12, "a spread this wide would hide faults"


def test_copies_and_selections_are_not_disturbed():
    x = torch.randn(16, 16)
    _, spread = spread_of(lambda value: torch.cat([value.t(), value.clamp(-1, 1), value[:, :].contiguous()]), x)
    assert not spread.any()


def test_infinite_mask_values_do_not_void_the_draws():
    x = torch.randn(4, 8)
    mask = torch.zeros(4, 8).masked_fill(torch.arange(8) > 5, float("-inf"))
    _, spread = spread_of(lambda value, bias: torch.softmax(value + bias, -1), x, mask)
    assert torch.isfinite(spread).all()
    assert spread[:, :6].all()


TERMS = {
    "of both signs": torch.randn,
    "of one sign": torch.rand,
    "alike": lambda *shape: torch.full(shape, 0.3),
}


# Of many that are alike, roundings agree: a sum of 1024 such, one by one, is no random walk, and on no device.
@pytest.mark.parametrize(
    ("kind", "terms"), [*((kind, 64) for kind in TERMS), *((kind, 1024) for kind in list(TERMS)[:2])]
)
def test_a_product_in_another_order_of_accumulation_stays_within_eight_spreads(terms, kind):
    torch.manual_seed(terms)
    x, w = TERMS[kind](32, terms), TERMS[kind](terms, 32)
    exact = x.double() @ w.double()
    limit = 8 * (product_spread(x.double(), w.double(), exact) + 2.0**-24 * exact.abs())
    one_by_one = torch.zeros(32, 32)
    for k in range(terms):
        one_by_one += x[:, k : k + 1] * w[k : k + 1]
    for result in (x @ w, x.flip(1) @ w.flip(0), one_by_one):
        assert ((result.double() - exact).abs() <= limit).all()


# One operator each whose float32 result may be far off in proportion to itself, because its terms cancel.
CANCELLING_SUMS = {
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "mean, subtracted": lambda x: x - x.mean(-1, keepdim=True),
    "convolution": lambda x: functional.conv1d(x[None], torch.ones(64, 1, 9, dtype=x.dtype), padding=4, groups=64)[0],
}


@pytest.mark.parametrize("name", CANCELLING_SUMS)
def test_a_sum_that_cancels_may_err_by_the_size_of_its_terms(name):
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    x[:, 128:] = -x[:, :128].flip(-1) * (1 + 2.0**-12)
    exact, spread = spread_of(CANCELLING_SUMS[name], x, dtype=torch.float32, draws=24)
    error = (CANCELLING_SUMS[name](x).double() - exact).abs()
    assert (error <= 8 * spread + 2.0**-23 * exact.abs()).all()


def test_a_rotation_by_complex_numbers_is_rounded_too():
    torch.manual_seed(0)
    x, angle = torch.randn(64, 16), torch.randn(64, 8)

    def rotate(x, angle):
        turned = torch.view_as_complex(x.reshape(64, 8, 2)) * torch.polar(torch.ones_like(angle), angle)
        return torch.view_as_real(turned)

    exact, spread = spread_of(rotate, x, angle, dtype=torch.float32, draws=24)
    error = (rotate(x, angle).double() - exact).abs()
    assert (error <= 8 * spread + 2.0**-23 * exact.abs()).all()
    assert (spread > 0).float().mean() > 0.99


@pytest.mark.parametrize("seed", range(5))
def test_exponentials_of_large_scores_are_judged_by_factors(seed):
    """Rounding scores of a thousand to bfloat16 multiplies small probabilities by any factor."""
    torch.manual_seed(seed)
    q, k = (30 * torch.randn(512, 8)).bfloat16(), (30 * torch.randn(8, 64)).bfloat16()

    def probabilities(q, k):
        return torch.softmax(torch.matmul(q, k) / 8**0.5, -1)

    exact, spread = spread_of(probabilities, q, k, draws=48)
    error = (probabilities(q, k).double() - exact).abs()
    assert (error <= 8 * spread + 2.0**-8 * exact.abs() + 1e-30).all()


def test_a_difference_that_changes_sign_is_no_factor():
    torch.manual_seed(0)
    x = torch.randn(64, 64)
    y = x + 2.0**-9 * torch.randn(64, 64)
    _, spread = spread_of(lambda x, y: 3 * x - 3 * y, x, y, draws=48)
    assert (spread < 2.0**-7 * 3 * x.abs()).float().mean() > 0.9


def test_many_large_scores_that_bfloat16_makes_equal_stay_within_eight_spreads():
    torch.manual_seed(0)
    scores = 1e6 + 300 * torch.randn(64, 40, dtype=torch.float64)
    exact = scores.softmax(-1)
    device = scores.bfloat16().softmax(-1).double()
    assert (device - exact).abs().max() > 0.5
    assert ((device - exact).abs() <= 8 * tie_spread(scores, -1, exact, 8.0, 2.0**-9) + 1e-6).all()


@pytest.mark.parametrize("seed", range(5))
def test_drawn_spreads_reach_as_far_as_ties_do(seed):
    """The root mean square of drawn numbers falls short in some of many elements."""
    torch.manual_seed(seed)
    scores = 1e6 + 1000 * torch.randn(1024, 64, dtype=torch.float64)
    exact, spread = spread_of(lambda scores: scores.softmax(-1), scores, draws=48)
    assert (spread >= tie_spread(scores, -1, exact, 8.0, 2.0**-9) * (1 - 1e-12)).all()


def test_ties_among_small_scores_and_masks_are_left_to_the_draws():
    scores = torch.tensor([[1.0, 1.0, 2.0, -torch.inf, torch.finfo(torch.float32).min]], dtype=torch.float64)
    assert not tie_spread(scores, -1, scores.softmax(-1), 8.0, 2.0**-9).any()
    nothing_seen = torch.full((1, 4), -torch.inf, dtype=torch.float64)
    assert not tie_spread(nothing_seen, -1, nothing_seen.softmax(-1), 8.0, 2.0**-9).any()


def test_what_is_beyond_the_limit_becomes_infinite():
    x = torch.tensor([60000.0, -60000.0], dtype=torch.float64)
    with WideArithmetic(limit=65504.0):
        assert (2 * x).tolist() == [torch.inf, -torch.inf]
        assert (x + 1).tolist() == [60001.0, -59999.0]


def test_float16_subnormals_round_by_their_spacing_and_zeros_not_at_all():
    x = torch.tensor([3e-4, 2e-4, 0.0], dtype=torch.float16)  # whose squares are one and two thirds of a spacing

    def run(arithmetic):
        with arithmetic:
            return [1e6 * widened(x).square()]

    spread = RoundingSpread(run, run(WideArithmetic()), 2.0**-11, seed=1, least=least_rounding(x.dtype))(64)[0]
    error = (1e6 * x.square().double() - run(WideArithmetic())[0]).abs()
    assert (error[:2] > 1e-2).all()
    assert (error <= 8 * spread).all()
    assert spread[2] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exponential_that_overflows_inside_a_bounded_function_may_be_lost(dtype):
    x = torch.full((16,), -89.0, dtype=dtype)

    def run(arithmetic):
        with arithmetic:
            return [1e9 * functional.silu(widened(x))]

    spread = RoundingSpread(run, run(WideArithmetic()), 2.0**-9, seed=1, least=least_rounding(dtype))(8)[0]
    device = 1e9 * functional.silu(x)
    assert ((device.double() - run(WideArithmetic())[0]).abs() <= 8 * spread).all()
    assert (spread < 1e-20).all()
