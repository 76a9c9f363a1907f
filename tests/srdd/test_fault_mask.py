import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import UsageError
from srdd.faults import Fault
from srdd.faults.mask import fault_mask, unit_mask

WIDTHS = st.integers(1, 3000)
SEEDS = st.integers(0, 2**64 - 1)


@given(WIDTHS, st.floats(1e-6, 1.0), SEEDS)
def test_the_share_of_units_asked_for_is_hit_or_it_is_an_error(width, sparsity, seed):
    wanted = round(sparsity * width)
    if wanted == 0:
        with pytest.raises(UsageError, match="hits none of them"):
            unit_mask(width, sparsity, 0, seed)
    else:
        mask = unit_mask(width, sparsity, 0, seed)
        assert mask.shape == (width,)
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == wanted


@given(WIDTHS, SEEDS, st.data())
def test_a_number_of_units_wins_over_the_share(width, seed, data):
    units = data.draw(st.integers(1, width))
    assert int(unit_mask(width, 1.0, units, seed).sum()) == units


def test_dense_hits_every_unit():
    assert unit_mask(896, 1.0, 0, 0).all()


@given(SEEDS, st.integers(1, 63))
def test_a_denser_mask_holds_the_sparser_one(seed, units):
    sparse, dense = (unit_mask(64, 1.0, count, seed) for count in (units, units + 1))
    assert not (sparse & ~dense).any()


def test_the_seed_chooses_the_units():
    masks = {tuple(unit_mask(512, 0.1, 0, seed).nonzero().flatten().tolist()) for seed in range(20)}
    assert len(masks) == 20
    assert torch.equal(unit_mask(512, 0.1, 0, 3), unit_mask(512, 0.1, 0, 3))


def test_units_are_chosen_evenly():
    hits = sum(unit_mask(100, 0.1, 0, seed).int() for seed in range(500))
    assert int(hits.min()) > 25
    assert int(hits.max()) < 85


def test_the_programs_own_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    first = unit_mask(512, 0.1, 0, 3)
    drawn = torch.rand(4)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(4))
    torch.manual_seed(2)
    assert torch.equal(first, unit_mask(512, 0.1, 0, 3))


def test_an_empty_mask_says_which_share_would_do():
    with pytest.raises(UsageError, match=r"sparsity 0.001 of 64 hidden units .* above 0\.0078.* or give units=1"):
        unit_mask(64, 0.001, 0, 0)
    assert int(unit_mask(64, 0.0079, 0, 0).sum()) == 1


def test_more_units_than_there_are_is_an_error():
    with pytest.raises(UsageError, match="65 units does not fit: the output has 64"):
        unit_mask(64, 1.0, 65, 0)


def fault(scope, shape, **options):
    mask = fault_mask(Fault("bias", 0, scope=scope, **options), torch.Size(shape))
    return mask.expand(shape)


def test_rows_are_the_same_tokens_of_each_period():
    mask = fault("rows", (2, 32, 8), units=3, period=16)
    assert bool((mask == mask[..., :1]).all())
    rows = mask[..., 0].reshape(4, 16)
    assert bool((rows == rows[0]).all())
    assert int(rows[0].sum()) == 3


def test_lanes_are_the_same_units_of_each_period():
    mask = fault("lanes", (4, 64), units=1, period=8)
    assert int(mask[0].sum()) == 8
    assert len(set((mask[0].nonzero().flatten() % 8).tolist())) == 1
    assert bool((mask == mask[0]).all())


def test_addresses_repeat_over_the_whole_tensor():
    mask = fault("addresses", (5, 7), units=1, period=6)
    places = mask.flatten().nonzero().flatten()
    assert set((places % 6).tolist()) == {int(places[0]) % 6}
    assert int(mask.sum()) in (5, 6)


@given(st.integers(1, 40), SEEDS)
def test_single_elements_are_as_many_as_asked_for(units, seed):
    mask = fault_mask(
        Fault("bias", 0, scope="elements", parameter="weight", units=units, seed=seed), torch.Size((8, 5))
    )
    assert mask.shape == (8, 5)
    assert int(mask.sum()) == units


def test_more_elements_than_there_are_is_an_error():
    with pytest.raises(UsageError, match="41 elements does not fit: the parameter has 40"):
        fault_mask(Fault("bias", 0, scope="elements", parameter="weight", units=41), torch.Size((8, 5)))
