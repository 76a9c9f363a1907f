"""What stands for a key-value cache in a recorded call."""

import pytest
import torch
from transformers import DynamicCache

from hal.structure import find_layer_stack
from srdd.replay.cache_reads import CacheReads, reads_in
from srdd.replay.capture import record
from srdd.replay.diverged import ReplayDivergedError
from srdd.replay.module import own_values, replay_module
from srdd.replay.part import run_part, unchanged

KEYS, VALUES = torch.arange(6.0).reshape(1, 1, 2, 3), torch.ones(1, 1, 2, 3)


def recorded():
    """A cache of two tokens, and what stands for it in a call that read three."""
    cache = DynamicCache()
    cache.update(KEYS, VALUES, 0)
    reads = CacheReads.before(cache)
    reads.returned.append((2 * KEYS, 2 * VALUES))
    return cache, reads


def test_it_gives_back_what_was_read_and_gathers_what_is_stored():
    reads = recorded()[1].changed(torch.Tensor.double)
    keys, values = reads.update(KEYS[..., :1, :], VALUES[..., :1, :], 0)
    assert torch.equal(keys, 2 * KEYS.double())
    assert torch.equal(values, 2 * VALUES.double())
    assert [tensor.tolist() for tensor in reads.stored] == [[[[[0, 1, 2]]]], [[[[1, 1, 1]]]]]


def test_it_begins_anew_for_each_call():
    _, reads = recorded()
    for change in (torch.clone, torch.neg):
        again = reads.changed(change)
        assert again.get_seq_length() == 2
        assert torch.equal(again.update(KEYS, VALUES, 0)[0], change(2 * KEYS))
        assert again.get_seq_length() == 4
    assert not reads.stored


def test_for_whatever_else_it_is_asked_it_is_the_cache_as_it_was():
    cache, reads = recorded()
    cache.update(KEYS, VALUES, 0)
    cache.layers[0].keys.zero_()
    wide = reads.changed(torch.Tensor.double)
    assert torch.equal(wide.layers[0].keys, KEYS.double())
    assert len(wide.layers) == 1
    with pytest.raises(AttributeError, match="no_such_thing"):
        wide.no_such_thing()


def test_what_a_call_writes_into_the_cache_is_gone_in_the_next():
    _, reads = recorded()
    for _ in range(2):
        again = reads.changed(lambda tensor: tensor)
        assert torch.equal(again.layers[0].keys, KEYS)
        again.layers[0].keys.zero_()


def test_what_came_between_a_layer_and_its_cache_is_left_behind():
    cache = DynamicCache()
    cache.update = lambda *_: pytest.fail("asked the device's cache")
    reads = CacheReads.before(cache)
    reads.returned.append((KEYS, VALUES))
    reads.update(KEYS, VALUES, 0)
    assert "update" in vars(cache)


def test_it_is_asked_no_more_often_than_the_cache_was():
    _, reads = recorded()
    reads.update(KEYS, VALUES, 0)
    with pytest.raises(ReplayDivergedError, match="used more often"):
        reads.update(KEYS, VALUES, 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_recorded_step_can_be_made_again_on_the_device_and_on_the_host(make_model, family):
    model = make_model(family, layers=1)
    layer = find_layer_stack(model).layers[0]
    ids = torch.arange(40).reshape(2, 20)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :-1], past_key_values=cache, use_cache=True)
        with record(layer) as trees:
            model(ids[:, -1:], past_key_values=cache, use_cache=True)
        (tree,) = trees
        attention = next(call for call in tree.walk() if call.cache is not None and call.cache.stored)
        (again,) = run_part(layer, attention, torch.device("cpu"), unchanged)
        (whole,) = run_part(layer, tree, torch.device("cpu"), unchanged)
    assert reads_in([*tree.args, *tree.kwargs.values()]) is tree.cache
    assert tree.cache.returned[0][0].shape[-2] == 20  # of all tokens
    assert not tree.cache.stored  # which is the attention's doing
    assert attention.cache.stored[0].shape[-2] == 1
    for one, other in ((attention, again), (tree, whole)):
        assert all(map(torch.equal, own_values(one), own_values(other)))
    for exact, actual in replay_module(attention, layer.double(), 2.0**-24, 0).pairs():
        assert torch.allclose(exact, actual.double(), atol=1e-5)
