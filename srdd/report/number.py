"""How numbers are written in every rendering of a report."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Three digits, in powers of ten where it is very large or small; "-" for what was not measured."""
    if math.isnan(value):
        return "-"
    if value == 0:
        return "0"
    if abs(value) > 1e300:  # infinity, or what a JSON file holds in its place
        return "inf" if value > 0 else "-inf"
    if 1e3 <= abs(value) < 1e4:
        return f"{value:.0f}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e3 else f"{value:.1e}"
