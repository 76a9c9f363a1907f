"""Samples: reproducible bits, and ranges that are what they say."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

import hal
from hal.ops import CATALOGUE, SIZES, VALUES, SampleSpec

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPE = (64, 128)


def drawn(values, dtype=torch.float32, **options):
    return SampleSpec(dtype, "large", values, seed=4).data("x", *SHAPE, **options)


def bytes_of(value):
    if isinstance(value, torch.Tensor):
        return value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return repr(value).encode()


def test_samples_of_the_whole_catalogue_are_frozen():
    digest = hashlib.sha256()
    for name in sorted(CATALOGUE):
        for dtype in DTYPES:
            for values in VALUES:
                for argument in CATALOGUE[name].sample(SampleSpec(dtype, "odd", values, seed=1)):
                    digest.update(bytes_of(argument))
    assert digest.hexdigest() == "55adef41a23bcc492384085651c1d16f19f150ce50a0ae6fe19ea9271b3b150a"


@pytest.mark.parametrize("name", sorted(CATALOGUE))
@pytest.mark.parametrize("size", SIZES)
def test_samples_are_on_the_host_in_the_dtype_asked_for(name, size):
    for argument in CATALOGUE[name].sample(SampleSpec(torch.bfloat16, size, "normal")):
        if isinstance(argument, torch.Tensor):
            assert argument.device.type == "cpu"
            assert argument.dtype in (torch.bfloat16, torch.int64, torch.bool)
            assert argument.is_contiguous()


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_seed_changes_the_data(name):
    first, second = (CATALOGUE[name].sample(SampleSpec(seed=seed)) for seed in (0, 1))
    assert any(bytes_of(a) != bytes_of(b) for a, b in zip(first, second, strict=True))


def test_odd_sizes_are_no_multiples_of_a_block():
    for name in ("softmax", "fake_quantize_mxfp4", "rms_norm"):
        width = CATALOGUE[name].sample(SampleSpec(size="odd"))[0].shape[-1]
        assert width % 2
        assert width > 32


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_and_one_sided(dtype):
    x = drawn("normal", dtype)
    assert x.dtype == dtype
    assert abs(float(x.float().mean())) < 0.05
    assert float(x.float().std()) == pytest.approx(1.0, abs=0.03)
    assert bool((drawn("one_sided", dtype) >= 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_fills_its_interval(dtype):
    x = drawn("uniform", dtype).float()
    assert float(x.min()) < -15.9
    assert 15.9 < float(x.max()) <= 16.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_near_zero_is_small(dtype):
    assert float(drawn("near_zero", dtype).abs().max()) < 0.002


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_is_below_the_smallest_normal_number_and_not_zero(dtype):
    x = drawn("subnormal", dtype)
    assert bool((x.abs() < torch.finfo(dtype).smallest_normal).all())
    assert bool((x != 0).all())
    assert bool((x > 0).any())
    assert bool((x < 0).any())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("headroom", [0, 1, 6])
def test_large_fills_four_octaves_below_its_headroom(dtype, headroom):
    x = drawn("large", dtype, headroom=headroom).double().abs()
    top = 2.0 ** math.ceil(math.log2(torch.finfo(dtype).max)) / 2**headroom
    assert bool(x.isfinite().all())
    assert top / 16 <= float(x.min()) < top / 15
    assert top * 0.95 < float(x.max()) <= top


def test_large_stays_below_its_limit():
    assert float(drawn("large", limit=20).abs().max()) < 2.0**20
    assert float(drawn("large", torch.float16, limit=20).abs().max()) > 2.0**14


@pytest.mark.parametrize("shape", [(4,), (64, 128), (300, 100)])
def test_nonfinite_holds_each_kind_and_few_of_them(shape):
    x = SampleSpec(values="nonfinite", seed=4).data("x", *shape)
    assert bool(x.isnan().any())
    assert int((~x.isfinite()).sum()) <= 3 * max(1, x.numel() // 8192)
    if x.numel() > 100:
        assert bool((x == math.inf).any())
        assert bool((x == -math.inf).any())


@pytest.mark.parametrize("values", VALUES)
def test_empty_shapes_are_fine(values):
    assert SampleSpec(values=values).data("x", 0, 3).shape == (0, 3)


def test_arguments_are_independent_and_weights_ignore_the_range():
    spec = SampleSpec(values="large", seed=1)
    assert not torch.equal(spec.data("a", 8), spec.data("b", 8))
    assert torch.equal(spec.weights("w", 8), SampleSpec(values="normal", seed=1).weights("w", 8))
    assert float(spec.projection("p", 500, inputs=256).std()) == pytest.approx(1 / 16, rel=0.15)


def test_nearly_every_operator_has_every_range():
    applicable = sum(values not in op.inapplicable for op in CATALOGUE.values() for values in VALUES)
    assert applicable >= 0.95 * len(VALUES) * len(CATALOGUE)
    assert all(reason for op in CATALOGUE.values() for reason in op.inapplicable.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "huge"}, "sample size 'huge' is unknown: choose one of tiny, odd, large"),
        ({"values": "odd"}, "sample values 'odd' is unknown: choose one of normal"),
        ({"dtype": torch.float64}, r"samples of dtype torch\.float64: choose float32"),
    ],
)
def test_unknown_choices_are_refused(arguments, message):
    with pytest.raises(hal.UsageError, match=message):
        SampleSpec(**arguments)
