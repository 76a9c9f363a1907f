"""Every operator's default against its reference, over all dtypes, sizes and value ranges."""

from __future__ import annotations

import itertools

import pytest
import torch

from hal.ops import CATALOGUE, SIZES, VALUES, SampleSpec, as_tensors, error_bound

OPERATORS = sorted(CATALOGUE)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = [
    (name, dtype, size)
    for name, dtype, size in itertools.product(OPERATORS, DTYPES, SIZES)
    if dtype in CATALOGUE[name].dtypes
]


def _id(value):
    return str(value).removeprefix("torch.")


def judge(op, spec):
    """Compare default and reference of one sample; returns the largest error in units of its bound."""
    arguments = op.sample(spec)
    with torch.no_grad():
        results = as_tensors(op.default(*arguments))
        references = as_tensors(op.reference(*arguments))
        bounds = error_bound(op, arguments, spec.dtype, references)
    worst = 0.0
    for result, reference, bound in zip(results, references, bounds, strict=True):
        wide = result.to(torch.float64)
        assert result.shape == reference.shape, "the result has another shape than the reference"
        expected = reference.to(torch.float64)
        if result.is_floating_point():
            limit = torch.finfo(result.dtype).max
            expected = torch.where(expected.abs() > limit, expected.to(result.dtype).double(), expected)
        finite = expected.isfinite()
        assert torch.equal(wide.isfinite(), finite), "finite and non-finite elements lie elsewhere"
        error, allowed = (wide - expected).abs()[finite], bound[finite]
        assert bool((error <= allowed).all()), f"error {error.max():.3g}, worst ratio {(error / allowed).max():.3g}"
        if len(error):
            worst = max(worst, float((error / allowed).nan_to_num(0).max()))
    return worst


@pytest.mark.parametrize(("name", "dtype", "size"), CASES, ids=_id)
def test_default_is_within_the_rounding_bound_of_the_reference(name, dtype, size):
    op = CATALOGUE[name]
    for values in VALUES:
        if values not in op.inapplicable:
            judge(op, SampleSpec(dtype, size, values, seed=11))
