"""The operator catalogue: what each operator means, how to sample it, and a default that runs anywhere.

Importing this package registers every operator. Functions are reached by their family's module, such as
`hal.ops.deadzone.survivors`, or through a backend, as `backend.ops.deadzone`.
"""

from hal.ops.catalogue import CATALOGUE, Op, OpTable, register

from hal.ops import (  # isort: skip
    activations,
    attention,
    deadzone,
    integrity,
    linear_algebra,
    loss,
    moments,
    normalisation,
    perturbation,
    quantisation,
    statistics,
)
from hal.ops.precision import as_tensors, error_bound, host64
from hal.ops.sampling import SIZES, VALUES, SampleSpec

__all__ = [
    "CATALOGUE",
    "SIZES",
    "VALUES",
    "Op",
    "OpTable",
    "SampleSpec",
    "activations",
    "as_tensors",
    "attention",
    "deadzone",
    "error_bound",
    "host64",
    "integrity",
    "linear_algebra",
    "loss",
    "moments",
    "normalisation",
    "perturbation",
    "quantisation",
    "register",
    "statistics",
]
