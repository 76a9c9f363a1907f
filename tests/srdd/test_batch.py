import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hal.errors import UsageError
from srdd.batch import LENGTH, ROWS, pack
from srdd.prompts import DEFAULT


class Letters:
    """One token a character."""

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in text]}


class Config:
    def __init__(self, **values):
        self.__dict__.update(values)


def model(vocabulary=200, **config):
    made = nn.Sequential(nn.Embedding(vocabulary, 4))
    made.config = Config(**config)
    return made


@given(st.lists(st.text(alphabet="abcdef ", min_size=1), min_size=1, max_size=30), st.integers(1, 300))
def test_tokens_come_in_order_in_a_full_rectangle(prompts, context):
    ids = pack(Letters(), prompts, model(max_position_embeddings=context))
    flat = "".join(map(chr, ids.flatten().tolist()))
    rows, length = ids.shape
    assert "".join(prompts).startswith(flat)
    assert 1 <= rows <= ROWS
    assert 1 <= length <= min(LENGTH, context)
    assert ids.dtype == torch.long


def test_enough_text_fills_four_rows_of_sixty_four():
    assert pack(Letters(), DEFAULT, model()).shape == (ROWS, LENGTH)


def test_a_single_token_is_a_batch():
    assert pack(Letters(), ["a"], model()).tolist() == [[97]]


@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions", "n_ctx"])
def test_rows_fit_the_models_context(name):
    assert pack(Letters(), DEFAULT, model(**{name: 10})).shape == (ROWS, 10)


@given(st.lists(st.text(alphabet="abcdef ", min_size=1), min_size=1, max_size=30), st.integers(1, 700))
def test_rows_of_a_length_that_is_asked_for_are_filled_with_the_prompts_again_and_again(prompts, tokens):
    ids = pack(Letters(), prompts, model(max_position_embeddings=700), tokens)
    assert ids.shape == (max(1, ROWS * LENGTH // tokens), tokens)
    text = "".join(prompts)
    assert "".join(map(chr, ids.flatten().tolist())) == (text * ids.numel())[: ids.numel()]


@pytest.mark.parametrize("tokens", [0, -1, 11])
def test_a_length_that_the_model_has_no_places_for_is_refused(tokens):
    with pytest.raises(UsageError, match=f"rows of {tokens} tokens: Sequential takes 1 to 10"):
        pack(Letters(), DEFAULT, model(n_ctx=10), tokens)


def test_ids_without_a_tokenizer_fill_rows_of_the_length_that_is_asked_for():
    assert pack(None, [], model(50), 1000).shape == (1, 1000)


def test_without_a_tokenizer_ids_are_drawn_from_the_whole_vocabulary_the_same_each_time():
    made = model(50)
    torch.manual_seed(0)
    ids = pack(None, [], made)
    drawn = torch.rand(4)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(4))
    assert torch.equal(ids, pack(None, [], made))
    assert ids.shape == (ROWS, LENGTH)
    assert set(ids.flatten().tolist()) == set(range(50))


def test_prompts_without_a_token_are_refused():
    with pytest.raises(UsageError, match="no token with this tokenizer"):
        pack(lambda text: {"input_ids": []}, ["a"], model())


def test_a_token_outside_the_vocabulary_names_the_wrong_tokenizer():
    with pytest.raises(UsageError, match="token 122 is outside the model's vocabulary of 100"):
        pack(Letters(), ["az"], model(100))


def test_a_model_without_an_embedding_says_its_vocabulary_in_its_config():
    made = nn.Linear(4, 4)
    made.config = Config(vocab_size=30)
    assert int(pack(None, [], made).max()) < 30


def test_a_model_that_does_not_say_its_vocabulary_is_refused():
    with pytest.raises(UsageError, match="neither an embedding nor config"):
        pack(None, [], nn.Linear(4, 4))
