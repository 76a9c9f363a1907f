"""The catalogue stays within its bounds however the device computes, and leaves them where it should not be trusted."""

from __future__ import annotations

import pytest
import torch

from hal import noise
from hal.ops import CATALOGUE, VALUES, SampleSpec, as_tensors, error_bound
from hal.ops.integrity import tensor_digest

SWITCHES = ("reorder", "hf32_matmul", "flush_subnormal", "saturate")
# What the documented defect of the device's gelu and the plain matrix unit's short inputs must show.
WRONG_GELU = {"gelu"}
# The operators made of matrix products; the checksum, though about one, uses none.
HF32 = {"matmul", "bmm", "linear", "attention"}


def failures(device, values):
    """Names of the operators whose default, on the device, leaves the bound of its reference."""
    failed = set()
    for name, op in CATALOGUE.items():
        for dtype in op.dtypes:
            spec = SampleSpec(dtype, "odd", values, seed=11)
            arguments = op.sample(spec)
            moved = [value.to(device) if isinstance(value, torch.Tensor) else value for value in arguments]
            references = as_tensors(op.reference(*arguments))
            bounds = error_bound(op, arguments, dtype, references)
            results = as_tensors(op.default(*moved))
            for result, reference, bound in zip(results, references, bounds, strict=True):
                finite = reference.isfinite()
                error = (result.double() - reference.double()).abs()
                if not (torch.equal(result.isfinite(), finite) and bool((error <= bound)[finite].all())):
                    failed.add(name)
    return failed


@pytest.mark.parametrize("switch", [None, *SWITCHES])
def test_digest_is_that_of_the_host(device, arithmetic, switch):
    x = noise.normal((33, 1001), seed=7, device="cpu") * 1e-38
    moved = x.to(device)  # before the switch: a device that flushes may do so when it copies
    with arithmetic(**({switch: True} if switch else {})):
        assert tensor_digest(moved) == tensor_digest(x)


@pytest.mark.parametrize("values", [values for values in VALUES if values != "large"])
def test_only_the_documented_gelu_fails(device, values):
    assert failures(device, values) <= WRONG_GELU


@pytest.mark.parametrize("switch", ["reorder", "flush_subnormal"])
def test_order_of_summation_and_flushing_stay_within_the_bounds(device, arithmetic, switch):
    with arithmetic(**{switch: True}):
        for values in ("normal", "near_zero", "one_sided"):
            assert failures(device, values) <= WRONG_GELU


def test_short_inputs_of_the_matrix_unit_are_noticed(device, arithmetic):
    with arithmetic(hf32_matmul=True):
        assert failures(device, "normal") - WRONG_GELU == HF32
