"""The counter-based generator against published vectors and an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hal import noise
from hal.noise.philox import _MULTIPLIER_0, _MULTIPLIER_1, _multiply, philox4x32

WORD = st.integers(0, 2**32 - 1)

# Random123, kat_vectors: counter, key, result of philox4x32 with ten rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_in_numpy(counter, key):
    """Philox4x32-10 as its paper writes it, in unsigned 64-bit integers."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            second & low,
            (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            first & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3]).astype(np.int64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_random123(counter, key, expected):
    seed = key[0] | key[1] << 32
    first, *rest = counter
    assert [int(word) for word in philox4x32((torch.tensor([first]), *rest), seed)] == list(expected)
    tensors = tuple(torch.tensor([word]) for word in counter)
    assert [int(word) for word in philox4x32(tensors, seed)] == list(expected)


@given(seed=st.integers(0, 2**64 - 1), stream=st.integers(0, 2**64 - 1), block=st.integers(0, 2**60))
def test_words_agree_with_an_implementation_in_numpy(seed, stream, block):
    count = 5
    blocks = [block + step for step in range(count)]
    counter = (
        [number % 2**32 for number in blocks],
        [number >> 32 for number in blocks],
        [stream % 2**32] * count,
        [stream >> 32] * count,
    )
    expected = philox_in_numpy(counter, (seed % 2**32, seed >> 32))
    words = noise.bits(4 * count, seed=seed, stream=stream, start=4 * block)
    assert torch.equal(words.view(count, 4).T, torch.from_numpy(expected))


def test_first_word_of_a_block_is_what_triton_draws():
    # tl.randint(seed, i) is word 0 of Philox4x32-10 at counter (i, 0, 0, 0) under the key (seed low, seed high).
    offsets = [0, 1, 2, 1000, 2**31, 2**32 - 1]
    zeros = [0] * len(offsets)
    expected = philox_in_numpy((offsets, zeros, zeros, zeros), (7, 3))[0]
    words = noise.bits_at(torch.tensor(offsets) * 4, seed=7 | 3 << 32)
    assert words.tolist() == expected.tolist()
    assert noise.bits(1, seed=0).item() == 0x6627E8D5


@given(word=WORD, multiplier=st.sampled_from([_MULTIPLIER_0, _MULTIPLIER_1]))
def test_product_is_split_exactly_and_never_leaves_62_bits(word, multiplier):
    product = word * (multiplier + 2**32)
    assert abs(word * multiplier) < 2**62
    assert _multiply(multiplier, word) == (product >> 32, product % 2**32)
    high, low = _multiply(multiplier, torch.tensor([word]))
    assert (high.item(), low.item()) == (product >> 32, product % 2**32)


def test_arguments_are_not_changed():
    counter = [torch.arange(4), torch.arange(4) + 5]
    philox4x32((counter[0], counter[1], 1, 2), 3)
    assert counter[0].tolist() == [0, 1, 2, 3]
    assert counter[1].tolist() == [5, 6, 7, 8]
