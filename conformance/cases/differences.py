"""The documented differences between accelerators, each with a case of its own.

They were collected from vendors' documentation, code and issues about one accelerator beside another
(docs/operators.md lists the sources by number); each case asks what any device must do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from conformance.case import Case, Context
from conformance.cases import differences_arithmetic as arithmetic
from conformance.cases import differences_operators as operators
from conformance.cases import differences_training as training
from conformance.cases import differences_types as types
from conformance.evidence import Evidence

Difference = tuple[str, str, str, Callable[[Context], Evidence]]

DIFFERENCES: tuple[Difference, ...] = (
    ("01-full-precision", "matmul", "float32 products and convolutions keep float32's bits", arithmetic.full_precision),
    ("02-summation-order", "matmul", "products stay within a bound of their partial sums", arithmetic.summation_order),
    ("03-repeatability", "repeatability", "the same call gives the same bits", arithmetic.repeatability),
    ("04-batch-invariance", "batch", "a row alone is as right as in a batch", arithmetic.batch_invariance),
    ("05-wide-floats", "float64", "float64 is float64 where it is declared", types.wide_floats),
    ("06-dtype-table", "dtypes", "declared dtypes are what operators return", types.dtype_table),
    ("07-large-integers", "integers", "integers beyond 2**24 keep their bits", types.large_integers),
    ("08-gelu-form", "gelu", "gelu is exact unless the tanh form is asked for", operators.gelu_form),
    ("09-attention-masks", "attention", "masks and grouped heads mean the same", operators.attention_masks),
    ("10-ties", "ties", "equal values, bin edges and repeated values are counted alike", operators.ties),
    ("11-targets", "cross_entropy", "a target out of range is refused", operators.targets),
    ("12-overflow", "overflow", "overflow is Inf and the undefined is NaN", arithmetic.overflow),
    ("13-random-streams", "generator", "the device's generator obeys seed and state", training.random_streams),
    ("14-host-fallback", "fallback", "no operator runs on the host unseen", operators.host_fallback),
    ("15-optimizer", "adamw", "AdamW is the published update", training.optimizer),
    ("16-memory-layout", "layout", "views and copies are the host's, whatever the format", types.memory_layout),
    ("17-fresh-memory", "memory", "no result depends on what fresh memory holds", types.fresh_memory),
    ("18-subnormals", "subnormals", "numbers below 2**-126 take part in arithmetic", arithmetic.subnormals),
    ("19-model-accuracy", "accuracy", "a whole model is as near to float64 as on the host", training.model_accuracy),
)


def cases() -> Iterator[Case]:
    """One case for each difference, in the order of their numbers."""
    for name, subject, purpose, check in DIFFERENCES:
        yield Case(f"differences/{name}", subject, check, purpose)
