"""transformers' code as its files have it. A process may have put other code in its place, as patches for fused kernels
do: into a class, or into the names of its module.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

_SHIPPED = "__as_shipped"


def shipped_class(cls: type) -> type:
    """The class of that name in a fresh execution of the file that defines `cls`, if that file is one of transformers'
    and anything that it defines has been replaced since; else `cls` itself.
    """
    return getattr(shipped_module(cls.__module__), cls.__name__, cls) if replaced(cls.__module__) else cls


@cache
def shipped_module(name: str) -> ModuleType:
    """A fresh execution of the file of the imported transformers module called `name`, made once and kept."""
    # Under another name, which transformers looks up in sys.modules, but in the same package, for relative imports.
    spec = importlib.util.spec_from_file_location(f"{name}{_SHIPPED}", sys.modules[name].__file__)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} has no file that could be executed")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def replaced(name: str) -> tuple[str, ...]:
    """What the imported module called `name` no longer has as its file defines it: functions, classes, and methods as
    `Class.method`. Empty for modules that are not transformers' own.
    """
    if not name.startswith("transformers.") or name.endswith(_SHIPPED) or name not in sys.modules:
        return ()
    shipped = shipped_module(name)
    present = vars(sys.modules[name])
    return tuple(
        found
        for own, value in vars(shipped).items()
        if getattr(value, "__module__", None) == shipped.__name__
        for found in _replaced(own, value, present.get(own))
    )


def same_code(one: object, other: object) -> bool:
    """Whether two functions have the same code, and what they wrap has too."""
    while getattr(one, "__code__", None) == getattr(other, "__code__", None):
        one, other = getattr(one, "__wrapped__", None), getattr(other, "__wrapped__", None)
        if one is None or other is None:
            return one is other
    return False


def _replaced(name: str, shipped: Any, present: Any) -> Iterator[str]:
    if isinstance(shipped, FunctionType):
        if not same_code(shipped, present):
            yield name
    elif isinstance(shipped, type):
        if not isinstance(present, type) or f"{present.__module__}{_SHIPPED}" != shipped.__module__:
            yield name
            return
        methods, now = _methods(shipped), _methods(present)
        for method in {**methods, **now}:
            added = method not in methods
            if (added and hasattr(shipped, method)) or not (added or same_code(methods[method], now.get(method))):
                yield f"{name}.{method}"


def _methods(cls: type) -> dict[str, FunctionType]:
    inner = {
        name: getattr(value, "__func__", getattr(value, "fget", value))  # of class and static methods, of properties
        for name, value in vars(cls).items()
    }
    return {name: value for name, value in inner.items() if isinstance(value, FunctionType)}
