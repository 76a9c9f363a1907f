"""Simulated hardware faults: what they are, where they sit, and how they are put in and taken out again."""

from srdd.faults.simulate import ActiveFault, simulate
from srdd.faults.specification import KINDS, MODES, SCOPES, Fault, parse_fault

__all__ = ["KINDS", "MODES", "SCOPES", "ActiveFault", "Fault", "parse_fault", "simulate"]
