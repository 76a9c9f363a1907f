"""The operator catalogue: what each operator means, how to sample it, and a default that runs anywhere."""

from hal.ops.catalogue import CATALOGUE, Op, OpTable, register

__all__ = ["CATALOGUE", "Op", "OpTable", "register"]
