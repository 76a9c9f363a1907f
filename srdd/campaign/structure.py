"""What a campaign must know of a model before any weight is loaded: its layers and the modules inside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from hal.errors import UsageError
from hal.structure import LayerStack, find_layer_stack
from srdd.faults import Fault
from srdd.faults.specification import KV_CACHE
from srdd.faults.stored import CONSTANTS

INNERMOST, WEIGHTS, ALL_CONSTANTS = "@innermost", "@weights", "@constants"
OUTSIDE = "@outside"

_LAYERS = {"first": 0.0, "middle": 0.5, "last": 1.0}
_PASSIVE = (nn.Dropout, nn.Identity, nn.ModuleList, nn.ModuleDict)  # what does nothing when a healthy model is run
# What a grid may write for a site that is called otherwise in each family of models.
_GROUPS: dict[str, Callable[[nn.Module], bool]] = {
    INNERMOST: lambda module: not list(module.children()),
    WEIGHTS: lambda module: isinstance(getattr(module, "weight", None), nn.Parameter),
    ALL_CONSTANTS: lambda module: any(isinstance(vars(module).get(name), (int, float)) for name in CONSTANTS),
}


@dataclass(frozen=True)
class Structure:
    """`sites` are the full names of the layers, in order; `modules` the names below each layer, in order; `groups`,
    for each word that stands for several sites, those of each layer; `outside` the full names of the innermost modules
    that belong to no layer and return numbers, in order.
    """

    sites: tuple[str, ...]
    modules: tuple[tuple[str, ...], ...]
    groups: Mapping[str, tuple[tuple[str, ...], ...]]
    outside: tuple[str, ...]

    def layer(self, value: object, where: str) -> int | None:
        """The index that `value` means: an index, or first, middle or last; None, for what is outside, means itself.
        Raises UsageError for any other.
        """
        if value is None:
            return None
        last = len(self.sites) - 1
        index = round(_LAYERS[value] * last) if isinstance(value, str) and value in _LAYERS else value
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= last:
            raise UsageError(f"{where}: layer {value!r} must be 0 to {last}, first, middle or last")
        return index

    def members(self, site: str, layer: int | None, where: str) -> tuple[str, ...]:
        """The sites that `site` stands for in `layer`, or outside the layers: itself, or those of a group. Raises
        UsageError for a group that there is not, or that has no member there.
        """
        if not site.startswith("@"):
            return (site,)
        if layer is None and site == OUTSIDE:
            return self.outside
        if layer is None:
            raise UsageError(
                f"{where}: layer null is outside the layers: give the site {OUTSIDE}, or a module's full name"
            )
        if site not in self.groups:
            raise UsageError(
                f"{where}: unknown site {site}: choose one of {', '.join(self.groups)}, or a module's name"
            )
        members = self.groups[site][layer]
        if not members:
            raise UsageError(f"{where}: no module of layer {layer} belongs to {site}; leave it out for this model")
        return members

    def require_site(self, fault: Fault, where: str) -> None:
        """Raise UsageError unless the layer of `fault`, or the model outside its layers, has a module at its site."""
        if fault.layer is None:
            if fault.site not in self.outside:
                known = ", ".join(self.outside)
                raise UsageError(f"{where}: no module outside the layers is called '{fault.site}'; there are {known}")
            return
        if fault.site not in ("", KV_CACHE, *self.modules[fault.layer]):
            known = ", ".join(self.modules[fault.layer][:12])
            raise UsageError(f"{where}: layer {fault.layer} has no module '{fault.site}'; it has {known}, ...")


def structure_of(model: nn.Module) -> Structure:
    """Read the structure off a model, which may be without memory."""
    stack = find_layer_stack(model)
    return Structure(
        sites=tuple(stack.site(index) for index in range(len(stack))),
        modules=_names(stack, lambda _module: True),
        groups={group: _names(stack, belongs) for group, belongs in _GROUPS.items()},
        outside=_outside(model, stack),
    )


def place(stack: LayerStack, fault: Fault) -> str:
    """The full name of the module that `fault` sits in."""
    if fault.layer is None:
        return fault.site
    return stack.site(fault.layer) + (f".{fault.site}" if fault.site else "")


def _outside(model: nn.Module, stack: LayerStack) -> tuple[str, ...]:
    inside = {id(module) for layer in stack.layers for module in layer.modules()}
    return tuple(
        name
        for name, module in model.named_modules()
        if name and id(module) not in inside and not list(module.children()) and not isinstance(module, _PASSIVE)
    )


def _names(stack: LayerStack, belongs: Callable[[nn.Module], bool]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(name for name, module in layer.named_modules() if name and belongs(module)) for layer in stack.layers
    )
