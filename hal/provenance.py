"""What a result was made by: the source files that decide it, as one digest."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import hal
from hal.backend import TorchBackend

_CHUNK = 1 << 24


def source_files(backend: TorchBackend, *packages: ModuleType) -> list[Path]:
    """The source files of `hal`, of the `packages` and of the backend, in order."""
    folders = [Path(package.__path__[0]) for package in (hal, *packages)]
    return sorted(
        [*(path for folder in folders for path in folder.rglob("*.py")), Path(inspect.getfile(type(backend)))]
    )


def files_digest(files: Iterable[Path]) -> str:
    """128 bits of SHA-256 over names, sizes and contents, as hexadecimal digits; large files are read in pieces."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:32]
