"""How findings and faults name places in a model: dotted module names, and what is no module."""

from __future__ import annotations

# What begins the name of a site that is no module, but what one was handed, or what the whole model returned.
OF_INPUT, OF_OUTPUT = "input of ", "output of "


def lies_in(site: str, module: str) -> bool:
    """Whether `site` is the module called `module`, or below it."""
    return f"{site}.".startswith(f"{module}.")
