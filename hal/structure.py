"""Find a model's repeated layers by structure, whatever their names are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from hal.errors import ModelError
from hal.skeleton import input_embeddings, text_config, transformers_model


@dataclass(frozen=True)
class LayerStack:
    """The repeated layers of a model, in order: `path` is the dotted name of their container, `layers` the
    modules. A process that holds one pipeline stage has stand-ins for the layers of the others, so that a layer has
    its number of the whole model everywhere; `present` are the numbers of those that are really there.
    """

    path: str
    layers: tuple[nn.Module, ...]

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def present(self) -> tuple[int, ...]:
        """Numbers of the layers that this process holds."""
        return tuple(index for index, layer in enumerate(self.layers) if not _is_stand_in(layer))

    def site(self, index: int) -> str:
        """Dotted name of layer `index`; raises ModelError when there is no such layer."""
        if not 0 <= index < len(self):
            raise ModelError(f"layer {index} does not exist: the model has layers 0 to {len(self) - 1}")
        return dotted(self.path, str(index))

    def layer_of(self, name: str) -> int | None:
        """The number of the layer that the module or parameter called `name` belongs to, None outside the layers."""
        prefix = f"{self.path}." if self.path else ""
        head = name.removeprefix(prefix).partition(".")[0]
        return int(head) if name.startswith(prefix) and head.isdigit() else None

    def holds(self, name: str) -> bool:
        """Whether the module called `name` is one of the layers, a part of one, or what contains just them."""
        return not self.path or f"{name}.".startswith(f"{self.path}.")


def dotted(*names: str) -> str:
    """The name of a module or parameter from its parts, of which some may be empty."""
    return ".".join(filter(None, names))


def enclosing(name: str) -> Iterator[str]:
    """The name of a module and of each that it lies in, the innermost first and the whole, "", last."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def find_layer_stack(model: nn.Module) -> LayerStack:
    """The list of repeated layers that holds most of the model's parameters. A candidate is a list-like
    container whose entries own parameters, and share a few classes or are as many as the model's configuration
    says; the largest wins, and of two equals the outer one. Of a model for texts and images or sounds, only the part
    for texts is searched, if it has any. Raises ModelError when the model has none.
    """
    number = _layers_counted(model)
    stacks = {path: container for path, container in model.named_modules() if _is_stack(container, number)}
    if not stacks:
        raise ModelError(
            f"{type(model).__name__} has no repeated layers: expected a ModuleList or Sequential of similar blocks"
        )
    path = max(_for_texts(model, list(stacks)), key=lambda path: _size(stacks[path]))
    return LayerStack(path, tuple(stacks[path].children()))


def _size(container: nn.Module) -> int:
    return sum(parameter.numel() for parameter in container.parameters())


def _layers_counted(model: nn.Module) -> int | None:
    """How many layers for texts the model's configuration counts; None where none says."""
    found = transformers_model(model)
    return getattr(text_config(found[1].config), "num_hidden_layers", None) if found else None


def _for_texts(model: nn.Module, stacks: list[str]) -> list[str]:
    """Of a model for texts and more, those of the `stacks` that are nearest to the embeddings of its texts."""
    found = transformers_model(model)
    if found is None or text_config(found[1].config) is found[1].config:
        return stacks
    embeddings = input_embeddings(model)
    name = next((name for name, module in model.named_modules() if module is embeddings), "")
    near = ([path for path in stacks if not place or f"{path}.".startswith(f"{place}.")] for place in enclosing(name))
    return next(filter(None, near))


def _is_stack(container: nn.Module, number: int | None) -> bool:
    if not isinstance(container, (nn.ModuleList, nn.Sequential)):
        return False
    layers = [layer for layer in container.children() if not _is_stand_in(layer)]
    composed = all(any(True for _ in layer.children()) for layer in layers)
    owning = all(next(layer.parameters(), None) is not None for layer in layers)
    # Hybrid models alternate two or three block classes; a plain pipeline of different modules is not a stack.
    alike = len({type(layer) for layer in layers}) <= len(layers) // 2
    expected = isinstance(container, nn.ModuleList) and len(layers) == number
    return bool(layers) and composed and owning and (len(layers) == 1 or alike or expected)


def _is_stand_in(layer: nn.Module) -> bool:
    # What pipeline-parallel engines put where another process has the layer (vLLM's PPMissingLayer is one).
    return isinstance(layer, nn.Identity)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode for the block, and each back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
