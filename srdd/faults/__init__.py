"""Simulated hardware faults: what they are, where they sit, and how they are put in and taken out again."""

from srdd.faults.simulate import ActiveFault, simulate
from srdd.faults.specification import KINDS, Fault, parse_fault

__all__ = ["KINDS", "ActiveFault", "Fault", "parse_fault", "simulate"]
