"""Which of a checkpoint's weights are which of a model's parameters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.weight_names import Naming, find_naming

BARE = {"embed": (8, 4), "layers.0.q": (4, 4), "layers.1.q": (4, 4), "norm": (4,)}
HEAD = {"head": (2, 4)}


def below(prefix, shapes):
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("model", "stored", "naming"),
    [
        (BARE, BARE, Naming()),
        (BARE, below("model", BARE) | HEAD, Naming(added="model.")),
        (below("model", BARE) | HEAD, BARE, Naming(removed="model.")),
        (BARE, below("text.model", BARE) | HEAD, Naming(added="text.model.")),
        (below("wrapped.inner", BARE), BARE, Naming(removed="wrapped.inner.")),
        (BARE, HEAD, None),
    ],
)
def test_names_differ_in_what_stands_in_front(model, stored, naming):
    assert find_naming(model, stored) == naming


def test_an_encoder_is_not_taken_for_the_decoder_beside_it():
    decoder = BARE | {"layers.0.cross": (4, 4), "layers.1.cross": (4, 4)}
    stored = below("decoder", decoder) | below("encoder", BARE)
    assert find_naming(BARE, stored) == Naming(added="encoder.")
    assert find_naming(decoder, stored) == Naming(added="decoder.")


def test_two_towers_that_fit_alike_are_not_guessed_between():
    assert find_naming(BARE, below("left", BARE) | below("right", BARE)) is None


def test_a_shape_that_differs_is_another_weight():
    assert find_naming({"norm": (4,)}, {"norm": (5,)}) is None


def test_a_parameter_without_the_removed_front_has_no_name_there():
    assert Naming(removed="model.").stored("head") is None
    assert Naming(removed="model.").stored("model.norm") == "norm"


@given(st.dictionaries(st.text("abc.", min_size=1, max_size=8), st.tuples(st.integers(1, 3)), min_size=1, max_size=8))
def test_a_checkpoint_of_the_model_itself_needs_no_other_names(shapes):
    naming = find_naming(shapes, shapes)
    assert naming is None or all(shapes[naming.stored(name)] == shapes[name] for name in shapes)
