"""What a campaign must know of a model before any weight is loaded: its layers and the modules inside them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hal.errors import UsageError
from hal.structure import find_layer_stack
from srdd.faults import Fault

_WORDS = {"first": 0.0, "middle": 0.5, "last": 1.0}


@dataclass(frozen=True)
class Structure:
    """`sites` are the full names of the layers, in order; `modules` the names below each layer, in order, and
    `innermost` those of them that hold no module themselves.
    """

    sites: tuple[str, ...]
    modules: tuple[tuple[str, ...], ...]
    innermost: tuple[tuple[str, ...], ...]

    def layer(self, value: int | str, where: str) -> int:
        """The index that `value` means: an index, or first, middle or last; raises UsageError for any other."""
        last = len(self.sites) - 1
        index = round(_WORDS[value] * last) if isinstance(value, str) and value in _WORDS else value
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= last:
            raise UsageError(f"{where}: layer {value!r} must be 0 to {last}, first, middle or last")
        return index

    def require_site(self, fault: Fault, where: str) -> None:
        """Raise UsageError unless the layer of `fault` has a module at its site."""
        if fault.site and fault.site not in self.modules[fault.layer]:
            known = ", ".join(self.modules[fault.layer][:12])
            raise UsageError(f"{where}: layer {fault.layer} has no module '{fault.site}'; it has {known}, ...")

    def place(self, fault: Fault) -> str:
        """The full name of the module that `fault` sits in."""
        site = self.sites[fault.layer]
        return f"{site}.{fault.site}" if fault.site else site


def structure_of(model: nn.Module) -> Structure:
    """Read the structure off a model, which may be without memory."""
    stack = find_layer_stack(model)
    named = [[(name, module) for name, module in layer.named_modules() if name] for layer in stack.layers]
    return Structure(
        sites=tuple(stack.site(index) for index in range(len(stack))),
        modules=tuple(tuple(name for name, _ in layer) for layer in named),
        innermost=tuple(tuple(name for name, module in layer if not list(module.children())) for layer in named),
    )
