"""A layer's call is captured with its residual stream and can be made again, on other inputs or in other dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hal import HookError
from hal.calls import LayerCall, capture_call, with_cache_by_name
from hal.outputs import hidden_states
from hal.structure import find_layer_stack
from tests.conftest import FAMILIES, random_model

IDS = torch.arange(24).reshape(2, 12) % 300
HIDDEN = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
RESIDUAL = torch.linspace(5, 6, 24).reshape(2, 3, 4)
POSITIONS = torch.arange(3)
MASK = torch.zeros(2, 1, 3, 3)


class Echo(nn.Module):
    """Returns its arguments, so that a test sees what it was called with."""

    def forward(self, *args, **kwargs):
        return args, kwargs


def captured(family: str, dtype: torch.dtype = torch.float32) -> list[tuple[LayerCall, torch.Tensor]]:
    """The calls of every layer during one forward pass, each with what the layer returned."""
    model = random_model(family, layers=2, dtype=dtype)
    model.config._experts_implementation = "eager"  # the grouped kernel has no float64
    pending: list[LayerCall] = []
    calls = []

    def before(layer, args, kwargs):
        pending.append(capture_call(layer, args, kwargs))

    def after(layer, args, output):
        calls.append((pending.pop(), hidden_states(output).clone()))

    handles = []
    for layer in find_layer_stack(model).layers:
        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after))
    with torch.no_grad():
        model(IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_replay_of_the_captured_stream_gives_the_same_bits(family, dtype):
    calls = captured(family, dtype)
    assert len(calls) == 2
    for call, output in calls:
        assert call.stream.shape == (2, 12, 64)
        assert call.stream.dtype == dtype
        with torch.no_grad():
            assert torch.equal(hidden_states(call.replay(call.stream)), output)


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_in_float64_on_a_wide_copy_agrees_to_rounding(family):
    for call, output in captured(family):
        with torch.no_grad():
            wide = hidden_states(call.replay(call.stream.double(), call.layer.double()))
        assert wide.dtype == torch.float64
        assert torch.allclose(wide, output.double(), rtol=1e-4, atol=1e-4)


def test_replay_feeds_the_given_stream():
    (call, output), _ = captured("qwen2")
    with torch.no_grad():
        changed = hidden_states(call.replay(call.stream + 1))
    assert changed.shape == output.shape
    assert not torch.allclose(changed, output)


def test_hooks_of_the_layer_run_in_a_replay():
    (call, output), _ = captured("qwen2")
    handle = call.layer.register_forward_hook(lambda layer, args, out: out + 1)
    with torch.no_grad():
        assert torch.equal(hidden_states(call.replay(call.stream)), output + 1)
    handle.remove()


def test_stream_is_a_copy_because_layers_may_write_into_their_input():
    hidden = HIDDEN.clone()
    call = capture_call(Echo(), (hidden,), {})
    hidden.zero_()
    assert torch.equal(call.stream, HIDDEN)
    (argument,), _ = call.replay(call.stream)
    argument.zero_()
    assert torch.equal(call.stream, HIDDEN)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((HIDDEN,), {}),
        ((HIDDEN, MASK), {}),
        ((POSITIONS, HIDDEN), {}),
        ((POSITIONS, HIDDEN, None), {}),
        ((), {"hidden_states": HIDDEN}),
        ((), {"attention_mask": MASK, "hidden_states": HIDDEN}),
        ((MASK,), {"hidden_states": HIDDEN}),
        ((torch.ones(4, 4), HIDDEN), {}),
        ((HIDDEN, RESIDUAL), {}),  # without positions before it, a second tensor is some other input
    ],
)
def test_stream_is_found_and_replaced_among_the_arguments(args, kwargs):
    call = capture_call(Echo(), args, kwargs)
    assert torch.equal(call.stream, HIDDEN)
    new_args, new_kwargs = call.replay(HIDDEN + 1)
    before, after = [*args, *kwargs.values()], [*new_args, *new_kwargs.values()]
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        if old is HIDDEN:
            assert torch.equal(new, HIDDEN + 1)
        else:
            assert new is old or torch.equal(new, old)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((POSITIONS, HIDDEN, RESIDUAL), {}),
        ((POSITIONS, HIDDEN), {"residual": RESIDUAL}),
        ((), {"positions": POSITIONS, "hidden_states": HIDDEN, "residual": RESIDUAL}),
    ],
)
def test_separate_residual_belongs_to_the_stream_and_is_zero_in_a_replay(args, kwargs):
    call = capture_call(Echo(), args, kwargs)
    assert torch.equal(call.stream, HIDDEN + RESIDUAL)
    new_args, new_kwargs = call.replay(call.stream)
    values = [*new_args, *new_kwargs.values()]
    assert torch.equal(values[1], HIDDEN + RESIDUAL)
    assert torch.equal(values[2], torch.zeros_like(HIDDEN))


def test_rows_of_tokens_without_a_batch_are_a_stream_too():
    rows = HIDDEN[0]
    call = capture_call(Echo(), (POSITIONS, rows, rows), {})
    assert torch.equal(call.stream, 2 * rows)


PARTS = {
    "rows of tokens": (torch.randn(5, 8), (slice(1, 3),)),
    "sequences": (torch.randn(2, 5, 8), (slice(None), slice(1, 3))),
    "streams behind the tokens": (torch.randn(2, 5, 3, 8), (slice(None), slice(1, 3))),
    "streams before them": (torch.randn(3, 2, 5, 8), (slice(None), slice(None), slice(1, 3))),
}


@pytest.mark.parametrize("layout", PARTS)
def test_a_part_of_a_call_is_cut_along_the_tokens(layout):
    stream, expected = PARTS[layout]
    rotations = {"main": (torch.randn(1, 5, 4), torch.randn(1, 5, 4))}
    options = {"position_ids": torch.arange(5)[None], "rotations": rotations, "past_key_values": None}
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    call = capture_call(Spy(), (stream,), {**options, "attention_mask": mask})
    assert call.tokens == 5
    part = call.part(1, 3, "cache")
    given = part.replay(part.stream)
    assert torch.equal(part.stream, stream[expected])
    assert given["position_ids"].tolist() == [[1, 2]]
    assert [tensor.shape for tensor in given["rotations"]["main"]] == [(1, 2, 4)] * 2
    assert given["attention_mask"].shape == (2, 1, 2, 3)
    assert given["past_key_values"] == "cache"


@pytest.mark.parametrize("layout", [name for name in PARTS if name != "rows of tokens"])
def test_the_first_of_several_sequences_can_be_called_alone(layout):
    stream, tokens = PARTS[layout]
    axis = len(tokens) - 2
    sequences = stream.shape[axis]
    given = {
        "position_ids": torch.arange(5)[None],
        "rotations": {"main": (torch.randn(1, 5, 4), torch.randn(5, 4))},
        "attention_mask": torch.ones(sequences, 1, 5, 5),
        "alibi": torch.randn(sequences * 4, 1, 5),
        "per_layer": [torch.randn(sequences, 5, 6)],
    }
    call = capture_call(Spy(), (stream,), given)
    assert call.sequences == sequences
    first = call.first_sequence()
    seen = first.replay(first.stream)
    assert torch.equal(first.stream, stream.narrow(axis, 0, 1))
    assert first.sequences == 1
    assert first.first_sequence() is first
    assert torch.equal(seen["alibi"], given["alibi"][:4])
    assert torch.equal(seen["attention_mask"], given["attention_mask"][:1])
    assert torch.equal(seen["per_layer"][0], given["per_layer"][0][:1])
    assert torch.equal(seen["position_ids"], given["position_ids"])
    assert [tensor.shape for tensor in seen["rotations"]["main"]] == [(1, 5, 4), (5, 4)]


class Spy(nn.Module):
    """A layer that returns what it was given by name."""

    def forward(self, hidden_states, **kwargs):
        return {"hidden_states": hidden_states, **kwargs}


def test_call_without_an_activation_is_refused_by_the_layers_class():
    with pytest.raises(HookError, match="Echo was called without a floating-point activation"):
        capture_call(Echo(), (POSITIONS, None), {"scale": torch.ones(3)})


def test_other_arguments_keep_their_dtype_unless_the_stream_changes_its_own():
    half = HIDDEN.bfloat16()
    cosines = (torch.ones(3, 2), [torch.ones(3)], {"table": torch.ones(2)})
    call = capture_call(Echo(), (half, cosines, POSITIONS), {"flag": True})

    (_, same, positions), kwargs = call.replay(half)
    assert same[0].dtype == same[1][0].dtype == same[2]["table"].dtype == torch.float32
    (_, wide, positions), kwargs = call.replay(half.double())
    assert wide[0].dtype == wide[1][0].dtype == wide[2]["table"].dtype == torch.float64
    assert positions.dtype == torch.int64
    assert kwargs == {"flag": True}


def test_other_arguments_follow_the_stream_to_its_device():
    call = capture_call(Echo(), (HIDDEN, (MASK, POSITIONS)), {})
    (stream, (mask, positions)), _ = call.replay(HIDDEN.to("meta"))
    assert stream.is_meta
    assert mask.is_meta
    assert positions.is_meta


def test_call_is_not_changed_by_its_replays():
    kwargs = {"hidden_states": HIDDEN, "residual": RESIDUAL}
    call = capture_call(Echo(), (), kwargs)
    call.replay(HIDDEN * 0)
    call.replay(HIDDEN * 0)
    assert torch.equal(call.stream, HIDDEN + RESIDUAL)
    assert kwargs["hidden_states"] is HIDDEN
    assert kwargs["residual"] is RESIDUAL


class TestCacheByName:
    class Block(nn.Module):
        def forward(self, hidden_states, past_key_values=None, mask=None, **options):
            return hidden_states

    def test_a_cache_by_position_and_what_follows_it_get_their_names(self):
        assert with_cache_by_name(self.Block(), ("x", "cache", "mask"), {"scale": 2}) == (
            ("x",),
            {"past_key_values": "cache", "mask": "mask", "scale": 2},
        )

    def test_other_calls_are_left_as_they_are(self):
        assert with_cache_by_name(self.Block(), ("x",), {"mask": "m"}) == (("x",), {"mask": "m"})
        assert with_cache_by_name(nn.Identity(), ("x",), {}) == (("x",), {})

    def test_more_arguments_than_names_are_nobodys(self):
        args = ("x", "cache", "mask", "too many")
        assert with_cache_by_name(self.Block(), args, {}) == (args, {})
