"""Write a file completely or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hal.errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path` and rename it; raises UsageError when the place cannot be
    written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; choose a directory that exists and is writable"
        ) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        raise


def require_writable(path: Path) -> None:
    """Raise UsageError now, before hours of work, when `path` could not be written later."""
    directory = path.parent
    if path.is_dir() or not directory.is_dir() or not os.access(directory, os.W_OK):
        raise UsageError(f"cannot write {path}: choose a file in a directory that exists and is writable")
