"""Which verl this release knows."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from typing import Final

from hal.errors import EngineError

OLDEST: Final = (0, 9)
NEWEST: Final = (0, 9)

# What is used of it, so that a release which calls itself right but lacks one is refused too.
_PARTS: Final = (
    "verl.plugin.platform",
    "verl.trainer.ppo.v1.trainer_sync",
    "verl.workers.engine_workers",
    "verl.workers.rollout.replica",
)


def require_version() -> str:
    """The installed verl's version; EngineError in one line when there is none, or it has not the hook points."""
    try:
        version = metadata.version("verl")
    except metadata.PackageNotFoundError as error:
        raise EngineError("verl is not installed: pip install 'srdd-hal[verl]' (docs/verl.md)") from error
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not OLDEST <= found <= NEWEST:
        age = "older" if found < OLDEST else "newer"
        raise EngineError(
            f"verl {version} is {age} than what this release knows (before 0.9 it has no registry of trainers and "
            "platforms): install 'verl>=0.9,<0.10'"
        )
    for part in _PARTS:
        if not _exists(part):
            raise EngineError(f"verl {version} has no {part}, which this needs: install 'verl>=0.9,<0.10'")
    return version


def _exists(module: str) -> bool:
    # Folder by folder, because find_spec of a submodule imports its parents.
    spec = find_spec("verl")
    for part in module.split(".")[1:]:
        if spec is None or not spec.submodule_search_locations:
            return False
        roots = list(spec.submodule_search_locations)
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(part, roots)
    return spec is not None
