"""The tokenizer splits the same way after saving, keeps newlines and digits single, and renders ChatML."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from hal.bundled.arithmetic import problems
from hal.bundled.tokenizer import END_OF_TEXT, TURN_END, TURN_START, build_tokenizer

TEXTS = [problem.question for problem in problems("train", 300, seed=0)] + ["some words\n\nmore words.\n"] * 50
AWKWARD = ["\n", "a\nb", "x.\n\n\n y", " \n\t\n", "1234\n56", "Ça va? 漢字 🙂", "\x00\x7f", "user\n", ""]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TEXTS, vocabulary=300)


@pytest.fixture(scope="module")
def loaded(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_it_has_merges_up_to_the_vocabulary_asked_for(tokenizer):
    assert len(tokenizer) == 300
    assert len(tokenizer("How many apples").input_ids) < len("How many apples")


@pytest.mark.parametrize("text", AWKWARD)
def test_decoding_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("text", [*AWKWARD, *TEXTS[:5], "<|im_start|>user\nhi<|im_end|>\n"])
def test_the_loaded_tokenizer_splits_as_the_built_one(tokenizer, loaded, text):
    assert loaded(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("text", AWKWARD)
def test_each_newline_is_one_token_of_its_own(loaded, text):
    (newline,) = loaded("\n", add_special_tokens=False).input_ids
    assert loaded(text, add_special_tokens=False).input_ids.count(newline) == text.count("\n")


def test_each_digit_is_one_token(loaded):
    assert loaded.tokenize("1234") == ["1", "2", "3", "4"]


def test_turns_end_with_the_end_of_sequence_and_padding_is_another_token(loaded):
    assert loaded.eos_token == TURN_END
    assert loaded.pad_token == END_OF_TEXT
    assert loaded.bos_token is None
    assert loaded.padding_side == "left"


def test_the_chat_template_renders_every_role_and_opens_the_reply(loaded):
    messages = [{"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant", "tool")]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turns = "".join(f"{TURN_START}{m['role']}\n{m['content']}{TURN_END}\n" for m in messages)
    assert text == f"{turns}{TURN_START}assistant\n"


def test_a_chat_survives_encoding_and_decoding(loaded):
    problem = problems("train", 1, seed=1)[0]
    text = loaded.apply_chat_template(problem.conversation, tokenize=False)
    ids = loaded(text, add_special_tokens=False).input_ids
    assert ids == loaded.apply_chat_template(problem.conversation)["input_ids"]
    assert loaded.decode(ids) == text
    assert loaded.decode(ids, skip_special_tokens=True).split("\n")[:4] == [
        "user",
        problem.question,
        "assistant",
        problem.answer,
    ]
    assert ids.count(loaded.convert_tokens_to_ids(TURN_END)) == 2


def test_a_prompt_is_the_start_of_the_conversation_token_by_token(loaded):
    for problem in problems("train", 50, seed=2):
        prompt = loaded.apply_chat_template(problem.messages, add_generation_prompt=True)["input_ids"]
        whole = loaded.apply_chat_template(problem.conversation)["input_ids"]
        assert whole[: len(prompt)] == prompt
