"""Every operator of the catalogue: dtype by size by range of values, against float64 on the host."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch

from conformance.case import Case, Context
from conformance.evidence import Evidence, digest_arguments
from conformance.formats import short
from hal.ops import CATALOGUE, SIZES, VALUES, Op, SampleSpec, as_tensors, error_bound


def cases() -> Iterator[Case]:
    """One case for each operator, dtype, size and range of values that it has."""
    for op in CATALOGUE.values():
        for dtype, size, values in itertools.product(op.dtypes, SIZES, VALUES):
            if values in op.inapplicable:
                continue
            yield Case(
                name=f"operators/{op.name}/{short(dtype)}/{size}/{values}",
                subject=op.name,
                check=functools.partial(_check, op, SampleSpec(dtype, size, values)),
                purpose=f"{op.name} of {values} values is its float64 reference within rounding",
                dtype=dtype,
                quick=size == "odd",
                seeded=True,
            )


def _check(op: Op, spec: SampleSpec, context: Context) -> Evidence:
    arguments = op.sample(SampleSpec(spec.dtype, spec.size, spec.values, context.seed))
    evidence = Evidence(inputs=digest_arguments(arguments))
    with torch.no_grad():
        results = as_tensors(context.call(op.name, *arguments))
        references = as_tensors(op.reference(*arguments))
        allowances = error_bound(op, arguments, _result_dtype(results, spec.dtype), references)
    for index, (result, reference, allowance) in enumerate(zip(results, references, allowances, strict=True)):
        part = "result" if len(results) == 1 else f"result {index}"
        if op.exact or not result.is_floating_point():
            evidence.equal(part, result, reference)
        else:
            evidence.within(part, result, reference, allowance)
    return evidence


def _result_dtype(results: tuple[torch.Tensor, ...], given: torch.dtype) -> torch.dtype:
    """The dtype that the result was rounded to: some operators answer in float32 whatever they are given."""
    return next((result.dtype for result in results if result.is_floating_point()), given)
