"""torch's own functions as torch's files have them, for what runs on the host. A process may have put others in their
place, and may watch or change every operation by modes and every module by hooks.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import groupby
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as module_hooks
from torch.overrides import _pop_mode_temporarily
from torch.utils._python_dispatch import _disable_current_modes

_FILES = Path(torch.__file__).parent
_OWN, _COMPILED = f"{_FILES}{os.sep}", f"{_FILES / '_dynamo'}{os.sep}"  # the second wraps whatever it is given
_ABSENT = object()
_SOURCES: tuple[Any, ...] = (torch._C._nn, torch._C._VariableFunctions)
_BUILTIN = frozenset(getattr(source, name) for source in _SOURCES for name in dir(source) if not name.startswith("__"))
_CALLS = ("__call__", "_call_impl", "_wrapped_call_impl")  # of nn.Module's methods; vendors replace `to`, for example
# Say how a tensor is shown and where it lies, and are replaced by vendors and engines.
_UNCOMPUTED = {"__repr__", "pin_memory", "record_stream"}
_HOOKS = tuple(
    getattr(module_hooks, f"_global_forward_{name}")
    for name in ("hooks", "pre_hooks", "hooks_always_called", "hooks_with_kwargs")
)


_inside: ContextVar[bool] = ContextVar("torch as shipped", default=False)


class _Place(NamedTuple):
    """A name in a module or class of torch, what that holds, and what torch has by that name; `_ABSENT` for nothing."""

    owner: Any
    held: Mapping[str, Any]
    name: str
    shipped: Any

    def put(self, value: Any) -> None:
        if value is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


@contextmanager
def torch_as_shipped() -> Iterator[None]:
    """Let torch's functions, `torch.Tensor`'s methods and the methods of torch's modules be torch's own inside the
    block, with none of the modes around it and none of the hooks on every module. A block inside another changes
    nothing, and costs nothing.
    """
    if _inside.get():
        yield
        return
    replaced = _replaced()
    hooks = [(held, dict(held)) for held in _HOOKS if held]
    inside = _inside.set(True)
    try:
        for place, _ in replaced:
            place.put(place.shipped)
        for held, _ in hooks:
            held.clear()
        with _disable_current_modes(), ExitStack() as popped:
            for _ in range(torch._C._len_torch_function_stack()):
                popped.enter_context(_pop_mode_temporarily())
            yield
    finally:
        _inside.reset(inside)
        for held, before in hooks:
            held.update(before)
        for place, present in replaced:
            place.put(present)


def replaced_in_torch(model: nn.Module) -> tuple[str, ...]:
    """Which of torch's functions, and of the methods of those of its modules that `model` is made of, this process has
    replaced, by their full names.
    """
    classes = {base for part in model.modules() for base in type(part).__mro__}
    return tuple(
        f"{_full_name(place.owner)}.{place.name}"
        for place, _ in _replaced()
        if not _is_module_class(place.owner) or place.owner in classes
    )


def replacements() -> dict[Any, Any]:
    """What torch has, by what this process has put in its place. A mode is handed a function by its name: the
    replacement where that called torch's own, which the mode must call in its turn.
    """
    return {
        present: getattr(super(place.owner, place.owner), place.name) if place.shipped is _ABSENT else place.shipped
        for place, present in _replaced()
        if callable(present)
    }


def _replaced() -> list[tuple[_Place, Any]]:
    """The places where something else is now, each with that."""
    return [
        (place, present)
        for owned in _owners()
        if not owned.untouched()
        for place in owned.places
        if (present := place.held.get(place.name, _ABSENT)) is not place.shipped and not _is_torchs(present, place.name)
    ]


class _Owned:
    """The places of one owner, which are looked through before each computation on the host: all at once."""

    def __init__(self, places: Sequence[_Place]) -> None:
        self.places = places
        self._held = places[0].held
        there = {place.name: place.shipped for place in places if place.shipped is not _ABSENT}
        self._names, self._shipped = tuple(there), tuple(there.values())
        self._absent = {place.name for place in places} - set(there)

    def untouched(self) -> bool:
        """Whether every place has what torch has there."""
        found = tuple(map(self._held.get, self._names))
        return found == self._shipped and self._absent.isdisjoint(self._held)


@cache
def _owners() -> tuple[_Owned, ...]:
    """Looked for once: what is replaced by then is taken from torch's files, what is replaced later from here."""
    places = (*_in_functions(), *_in_tensor(), *_in_modules())
    return tuple(_Owned(list(own)) for _, own in groupby(places, key=lambda place: id(place.owner)))


def _full_name(owner: Any) -> str:
    if isinstance(owner, ModuleType):
        return owner.__name__
    return f"torch.nn.{owner.__name__}" if _is_module_class(owner) else f"torch.{owner.__name__}"


def _is_module_class(owner: Any) -> bool:
    return isinstance(owner, type) and issubclass(owner, nn.Module)


def _in_functions() -> Iterator[_Place]:
    for name in dir(torch._C._VariableFunctions):
        if not name.startswith("_") and name in vars(torch):
            yield _place(torch, name, "torch.functional")
    for name, value in list(vars(functional).items()):
        if callable(value) and not isinstance(value, type) and not name.startswith("_"):
            yield _place(functional, name, functional.__name__)


def _in_tensor() -> Iterator[_Place]:
    own = {name for name, value in vars(torch.Tensor).items() if isinstance(value, FunctionType)}
    inherited = {name for name, value in vars(torch._C.TensorBase).items() if callable(value)} - {"__new__"}
    for name in sorted((own | inherited) - _UNCOMPUTED):
        yield _place(torch.Tensor, name, "torch._tensor")


def _in_modules() -> Iterator[_Place]:
    classes = {
        value.__name__: value
        for file, module in list(sys.modules.items())
        if file.startswith("torch.nn.modules.")
        for value in vars(module).values()
        if _is_module_class(value) and value.__module__ == file and hasattr(nn, value.__name__)
    }
    for name, cls in classes.items():
        yield _Place(nn, vars(nn), name, cls)
    for cls in classes.values():
        inner = {name for name, value in vars(cls).items() if name[0] == "_" != name[1] and callable(value)}
        for method in _CALLS if cls is nn.Module else sorted(inner | {"forward", "__call__"}):
            yield _place(cls, method, cls.__module__)


def _place(owner: Any, name: str, file: str) -> _Place:
    held = vars(owner)
    present = held.get(name, _ABSENT)
    return _Place(owner, held, name, present if _is_torchs(present, name) else _from_file(owner, name, file))


def _is_torchs(value: Any, name: str) -> bool:
    """Whether `value` is what torch defines by that name, or nothing that could be called."""
    if isinstance(value, FunctionType):
        file = value.__code__.co_filename
        inner = getattr(value, "__wrapped__", None)
        own = value.__name__ == name and file.startswith(_OWN) and not file.startswith(_COMPILED)
        return own and (inner is None or _is_torchs(inner, name))
    if isinstance(value, BuiltinFunctionType):
        return value.__name__ == name and value in _BUILTIN
    return isinstance(value, MethodDescriptorType) or not callable(value)


def _from_file(owner: Any, name: str, file: str) -> Any:
    """What the imported module `file` of torch defines as `owner.name`; what is there now where it defines nothing."""
    definition = _definitions(file, owner.__name__ if isinstance(owner, type) else "").get(name)
    if definition is not None:
        made = dict(vars(owner))
        code = compile(ast.Module([definition], []), file, "exec")
        exec(code, vars(sys.modules[file]), made)  # noqa: S102  -- torch's own code, from the file it was imported from
        return made[name]
    if isinstance(owner, type):
        return _ABSENT if any(name in vars(base) for base in owner.__mro__[1:]) else vars(owner)[name]
    found = (getattr(source, name) for source in _SOURCES if hasattr(source, name))
    return next(found, vars(owner)[name])


@cache
def _definitions(file: str, cls: str) -> dict[str, ast.stmt]:
    """The functions that a file of torch defines, or those of one of its classes, the last of each name."""
    body = ast.parse(Path(str(sys.modules[file].__file__)).read_bytes()).body
    if cls:
        body = next(part.body for part in body if isinstance(part, ast.ClassDef) and part.name == cls)
    found: dict[str, ast.stmt] = {part.name: part for part in body if isinstance(part, ast.FunctionDef)}
    for part in body:
        if isinstance(part, (ast.Assign, ast.AnnAssign)) and isinstance(part.value, ast.Name):  # another name for one
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            found |= {target.id: part for target in targets if isinstance(target, ast.Name)}
    return found
