"""Plain English that ships with CPython: the docstrings of its standard library and its licence text.

Both are under the Python Software Foundation licence. The wording differs a little between Python versions, so the
model card records the version the model was trained with. Like the problems, each passage is on one side of the
split for good, decided by a hash of its words.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import random
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from hal.bundled.arithmetic import SPLITS, Split
from hal.errors import UsageError

HELD_OUT_SHARE: Final = 20  # one passage in this many
_SHORTEST: Final = 120  # shorter docstrings are mostly signatures
_LONGEST: Final = 2000
_PROSE_SHARE: Final = 0.93  # of letters and white space; code listings and tables have less
# Packages with prose worth reading; the rest is tests, tables and thin wrappers.
_PACKAGES: Final = (
    "asyncio",
    "collections",
    "concurrent",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
_LEGAL: Final = "LICENSE.txt"


def passages(split: Split, count: int | None = None, seed: int = 0) -> list[str]:
    """Passages of English from one side of the split in an order set by the seed; all of them without a count."""
    if split not in SPLITS:
        raise UsageError(f"split '{split}' is unknown: use one of {', '.join(SPLITS)}")
    chosen = [passage for passage in _all_passages() if _side(passage) == split]
    if count is not None and not 0 <= count <= len(chosen):
        raise UsageError(
            f"count {count} is out of range: {split} holds {len(chosen)} passages; ask for 0 to {len(chosen)}"
        )
    random.Random(f"text:{seed}").shuffle(chosen)  # noqa: S311 -- reproducible, not secret
    return chosen[:count]


def _side(passage: str) -> Split:
    digest = hashlib.blake2b(" ".join(passage.split()).encode(), digest_size=4).digest()
    return "held-out" if int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0 else "train"


@cache
def _all_passages() -> tuple[str, ...]:
    """Every usable passage once, in the order of the files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = dict.fromkeys(passage for text in _texts(root) for passage in _prose(text))
    if not found:
        raise UsageError(f"{root} holds no Python sources: install CPython with its standard library as files")
    return tuple(found)


def _texts(root: Path) -> Iterator[str]:
    legal = root / _LEGAL
    if legal.is_file():
        yield from legal.read_text(encoding="utf-8").split("\n\n")
    files = [*root.glob("*.py"), *(file for package in _PACKAGES for file in (root / package).rglob("*.py"))]
    for file in sorted(files):
        yield from _docstrings(file)


def _docstrings(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in the library's sources are not ours to report
            tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def _prose(text: str) -> Iterator[str]:
    """The text tidied, if it is ASCII prose of a useful length."""
    passage = inspect.cleandoc(text).strip()
    if not _SHORTEST <= len(passage) <= _LONGEST or not passage.isascii():
        return
    words = sum(character.isalpha() or character.isspace() for character in passage)
    if words > _PROSE_SHARE * len(passage):
        yield passage
