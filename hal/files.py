"""Write files completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

from hal.errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path` and rename it; raises UsageError when the place cannot be
    written.
    """
    write_texts({path: text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write every text to its path, or none: all lie in temporary files before the first is renamed, and what was
    renamed is put back when a later one fails. Raises UsageError that names the path which cannot be written.
    """
    with ExitStack() as leftovers, ExitStack() as undo:
        staged = [(path, _staged(path, text, leftovers)) for path, text in texts.items()]
        for path, temporary in staged[:-1]:
            undo.callback(_restore, path, _backup(path, leftovers))
            _rename(temporary, path)
        for path, temporary in staged[-1:]:
            _rename(temporary, path)
        undo.pop_all()


def require_writable(path: Path) -> None:
    """Raise UsageError now, before hours of work, when `path` could not be written later."""
    directory = path.parent
    if path.is_dir() or not directory.is_dir() or not os.access(directory, os.W_OK):
        raise UsageError(f"cannot write {path}: choose a file in a directory that exists and is writable")


def require_folder(folder: Path) -> None:
    """Make `folder` if need be, and raise UsageError now when nothing could be written there later."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error
    require_writable(folder / "result.json")


def require_outputs(paths: Collection[Path]) -> None:
    """Raise UsageError now when one of `paths` could not be written later, or two are the same file."""
    for path in paths:
        require_writable(path)
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError(f"{' and '.join(map(str, paths))} are the same file: choose a file for each output")


def _staged(path: Path, text: str, leftovers: ExitStack) -> Path:
    temporary = _temporary(path, leftovers)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY), "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    return temporary


def _temporary(path: Path, leftovers: ExitStack) -> Path:
    """A new empty file beside `path`, removed when `leftovers` closes unless it was renamed."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; choose a directory that exists and is writable"
        ) from error
    os.close(handle)
    leftovers.callback(Path(name).unlink, missing_ok=True)
    return Path(name)


def _backup(path: Path, leftovers: ExitStack) -> Path | None:
    if not path.exists():
        return None
    kept = _temporary(path, leftovers)
    shutil.copy2(path, kept)
    return kept


def _restore(path: Path, kept: Path | None) -> None:
    if kept is None:
        path.unlink(missing_ok=True)
    else:
        kept.replace(path)


def _rename(temporary: Path, path: Path) -> None:
    try:
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
