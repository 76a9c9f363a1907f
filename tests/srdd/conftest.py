"""Shared by the tests of srdd: one thread, and a checkpoint on disk with a tokenizer of its own."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import random_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A tokenizer in which each byte is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, byte_tokenizer):
    """A directory with a small random Qwen2 and the byte tokenizer; tests that damage it take a copy."""
    directory = tmp_path_factory.mktemp("checkpoint")
    random_model("qwen2", layers=4, hidden=32).save_pretrained(directory)
    byte_tokenizer.save_pretrained(directory)
    return directory
