"""What decides the outcome of a case beside the case: code, libraries, backend and model, as digests and versions."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import hal
import srdd
from hal.backend import TorchBackend
from hal.checkpoint import weight_files

# What only selects or judges cases may change between two halves of a campaign; what scans may not.
_JUDGING = ("campaign", "report")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_CHUNK = 1 << 24


def provenance(backend: TorchBackend, directory: Path) -> dict[str, str]:
    """Name by name: the version of this package and a digest of its code, the backend and its libraries, and a
    digest of the checkpoint in `directory`. Raises ModelError for a checkpoint that is not whole.
    """
    described = {name: (directory / name) for name in ("config.json", *_TOKENIZER)}
    return {
        "srdd-hal": version("srdd-hal"),
        "code": _digest(_code(backend)),
        "backend": backend.name,
        **backend.versions(),
        "transformers": version("transformers"),
        "model": _digest([*(path for path in described.values() if path.is_file()), *weight_files(directory)]),
    }


def _code(backend: TorchBackend) -> list[Path]:
    """The source files of `hal`, of the scanning part of `srdd`, and of the backend."""
    scanner = Path(srdd.__file__).parent
    files = [path for path in scanner.rglob("*.py") if path.relative_to(scanner).parts[0] not in _JUDGING]
    return sorted([*files, *Path(hal.__file__).parent.rglob("*.py"), Path(inspect.getfile(type(backend)))])


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:32]
