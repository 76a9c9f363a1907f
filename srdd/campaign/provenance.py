"""What decides the outcome of a case beside the case: code, libraries, backend and model, as digests and versions."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import srdd
from hal.backend import TorchBackend
from hal.checkpoint import weight_files
from hal.provenance import files_digest, source_files

# What only selects or judges cases may change between two halves of a campaign; what scans may not.
_JUDGING = ("campaign", "report")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


def provenance(backend: TorchBackend, directory: Path) -> dict[str, str]:
    """Name by name: the version of this package and a digest of its code, the backend and its libraries, and a
    digest of the checkpoint in `directory`. Raises ModelError for a checkpoint that is not whole.
    """
    described = {name: (directory / name) for name in ("config.json", *_TOKENIZER)}
    return {
        "srdd-hal": version("srdd-hal"),
        "code": files_digest(_code(backend)),
        "backend": backend.name,
        **backend.versions(),
        "transformers": version("transformers"),
        "model": files_digest([*(path for path in described.values() if path.is_file()), *weight_files(directory)]),
    }


def _code(backend: TorchBackend) -> list[Path]:
    """The source files of `hal`, of the scanning part of `srdd`, and of the backend."""
    judging = [Path(srdd.__file__).parent / name for name in _JUDGING]
    files = source_files(backend, srdd)
    return [path for path in files if not any(path.is_relative_to(folder) for folder in judging)]
